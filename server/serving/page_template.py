"""What the page of `fedseal serve` shows of `page.Page.facts`."""

from __future__ import annotations

from server.web.html import template

BODY = template("""
<p class="eyebrow">fedseal serve, {{ owner.name }}</p>
<h1>{{ title }}</h1>
{% if stopping %}
<p class="verdict"><b class="warn">Stopping.</b> Calls under way are answered, new ones are not taken.</p>
{% else %}
<p class="verdict"><b class="good">Serving.</b> {{ models | length }} model{{ "" if models | length == 1 else "s" }}
to {{ clients | length }} client{{ "" if clients | length == 1 else "s" }} on <code>{{ owner.address }}</code>,
for {{ (now - since) | span }}, since {{ since | clock }}; last block {{ ago(now, served) }}.</p>
{% endif %}
<div class="tiles">
{% for value, words in tiles %}
<div class="tile"><b>{{ value }}</b><span>{{ words }}</span></div>
{% endfor %}
</div>
{% if notes %}
<div class="notes">
{% for note in notes %}
<p><b class="warn">Note.</b> {{ note }}.</p>
{% endfor %}
</div>
{% endif %}

<h2>Models</h2>
<div class="wide"><table>
<tr><th>model</th><th>version</th><th>kind</th><th>a client sends</th><th>and gets</th><th>classes</th>
<th>parameters</th></tr>
{% for model in models %}
<tr><td>{{ model.name }}</td><td class="once"><code>{{ model.version }}</code></td><td>{{ model.kind }}</td>
<td>{{ model.takes }}</td><td>{{ model.gives }}</td>
<td>{{ model.classes[:6] | join(", ") }}{% if model.classes | length > 6 %} and
{{ model.classes | length - 6 }} more{% endif %}</td>
<td class="once">{{ model.parameters }}</td></tr>
{% endfor %}
</table></div>

<h2>Speed</h2>
{% if latency %}
<div class="wide"><table>
<tr><th>model</th><th class="n">blocks</th><th class="n">p50</th><th class="n">p95</th><th class="n">p99</th>
<th>rows a minute, last hour</th><th class="n">most</th></tr>
{% for name, of in latency.items() %}
<tr><td>{{ name }}</td><td class="n">{{ of.blocks | count }}</td><td class="n">{{ of.p50 | duration }}</td>
<td class="n">{{ of.p95 | duration }}</td><td class="n">{{ of.p99 | duration }}</td>
<td>{{ sparkline(of.minutes, "rows a minute in the last hour, at most " ~ of.minutes | max) }}</td>
<td class="n">{{ of.minutes | max | count }}</td></tr>
{% endfor %}
</table></div>
<p class="soft">From a block's request to its answer, at this server; of each model's latest {{ latest | count }}
blocks. A block holds one row or thousands; at most {{ owner.capacity }} are worked on at a time.</p>
{% else %}
<p class="soft">No block was answered since the start.</p>
{% endif %}

<h2>Clients</h2>
<div class="wide"><table>
<tr><th>client</th><th>may ask until</th><th class="n">rows today</th><th class="n">left of quota</th>
<th class="n">rows in all</th><th class="n">refused</th><th>last seen</th></tr>
{% for client in clients %}
<tr><td>{{ client.name }}</td>
<td class="once">{% if client.ended %}<b class="warn">ended</b> {% endif %}{{ client.until }}</td>
<td class="n">{{ client.today | count }}</td>
<td class="n">{{ client.left | count }}{{ bar(client.today, quota.rows_a_day) }}</td>
<td class="n">{{ client.ever | count }}</td><td class="n">{{ client.refusals | count }}</td>
<td class="once">{{ ago(now, client.last) }}</td></tr>
{% endfor %}
</table></div>
<p class="soft">Each may have {{ quota.rows_a_day | count }} rows a day and {{ "{:g}".format(quota.requests_a_second) }}
requests a second; the day ends at midnight UTC. A row counts from its request on, answered or not.
Refused and last seen: since the start.</p>

<h2>Served in all</h2>
{% if behind %}
<p class="warn">{{ behind | count }} entries of the ledger are still to be added.</p>
{% endif %}
{% if used %}
<div class="wide"><table>
<tr><th>client</th><th>model</th><th class="n">blocks</th><th class="n">rows</th><th class="n">sent both ways</th></tr>
{% for line in used %}
<tr><td>{{ line.client }}</td><td>{{ line.model }}</td><td class="n">{{ line.blocks | count }}</td>
<td class="n">{{ line.rows | count }}</td><td class="n">{{ line.bytes | size }}</td></tr>
{% endfor %}
</table></div>
{% else %}
<p class="soft">There is no receipt on the ledger yet.</p>
{% endif %}
<p class="soft">From the receipts on the ledger, signed by both sides. This page proves nothing; the ledger does:</p>
<pre>fedseal audit usage --ledger {{ owner.ledger }}
fedseal audit verify --ledger {{ owner.ledger }}</pre>

<h2>Refusals</h2>
{% if refusals %}
<div class="wide"><table>
<tr><th>cause</th><th>code</th><th class="n">calls</th><th>whose</th></tr>
{% for line in refusals %}
<tr><td>{{ line.words }}</td><td><code>{{ line.code }}</code></td><td class="n">{{ line.calls | count }}</td>
<td>{{ line.whose }}</td></tr>
{% endfor %}
</table></div>
{% else %}
<p class="soft">No call was refused since the start.</p>
{% endif %}

<h2>What a client needs</h2>
<table class="facts">
<tr><td>address</td><td><code>{{ owner.address }}</code>, under a name that the certificate holds:
{{ owner.hosts | join(", ") }}</td></tr>
<tr><td>authority</td><td>{% if owner.authority %}<code>{{ owner.authority }}</code>, on a way that both trust
{%- else %}that of the certificate that was given with --tls-cert, as a PEM file{% endif %}</td></tr>
<tr><td>certificate until</td><td>{{ owner.certificate_end | clock }}</td></tr>
<tr><td>card of {{ owner.name }}</td><td><code>{{ owner.fingerprint }}</code>, to compare with what the client
pinned</td></tr>
</table>

<footer>{{ now | clock }}; the page is made anew every {{ refresh }} s. For machines: <code>/metrics</code>
(Prometheus), <code>/health</code>.</footer>
""")
