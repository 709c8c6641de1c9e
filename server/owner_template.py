"""What an owner's page shows of `owner_page.Owner`."""

from __future__ import annotations

from server.web.html import template

_GRANTS = """
<div class="wide"><table>
<tr><th>grant</th><th>to whom</th><th>what</th><th>state</th><th class="n">used</th><th class="n">uses left</th>
<th class="n">ε taken</th><th class="n">ε left</th><th>until</th></tr>
{% for grant in grants %}
<tr><td class="once"><code>{{ grant.id[:16] }}</code></td>
<td>{{ grant.who }}{% if grant.mark %}<span class="side soft">{{ grant.mark }}</span>{% endif %}</td>
<td>{{ grant.terms["dataset"] }}<span class="side soft">{{ grant.terms["in jobs of kind"] }}
{%- if "for" in grant.terms %}; {{ grant.terms["for"] }}{% endif %}</span></td>
<td><b class="{{ grant.tone }}">{{ grant.state }}</b></td>
<td class="n">{{ grant.used | count }}{% if grant.going %} and {{ grant.going }} under way{% endif %}</td>
<td class="n">{{ grant.left }}</td><td class="n">{{ grant.epsilon }}</td><td class="n">{{ grant.epsilon_left }}</td>
<td class="once">{{ grant.until }}</td></tr>
{% if grant.sign or grant.revoke %}
<tr><td></td><td colspan="8"><code>{{ grant.sign or grant.revoke }}</code></td></tr>
{% endif %}
{% endfor %}
</table></div>
"""

BODY = template(
    """
<p class="eyebrow">fedseal owner</p>
<h1>{{ title }}</h1>
{% if node %}
<p class="verdict">{% if node.paused %}<b class="warn">Paused:</b> takes no new jobs (<code>fedseal node resume</code>).
{% elif node.connected %}<b class="good">Connected</b> to {{ node.coordinator }}.
{% elif node.running %}<b class="warn">Not connected</b> to {{ node.coordinator }}.
{% else %}<b class="warn">Not running</b> (<code>fedseal node start</code>).{% endif %} Last
word with the coordinator: {{ ago(now, node.last) }}{% if node.detail %} ({{ node.detail }}){% endif %}.
Consent: {% if node.consent == "ask" %}each use needs a grant{% else %}whoever the coordinator admits may use the
data; <code>fedseal node set --consent ask</code> asks for a grant each time{% endif %}.</p>
{% endif %}
{% if notes %}
<div class="notes">
{% for note in notes %}
<p><b class="warn">Note.</b> {{ note }}.</p>
{% endfor %}
</div>
{% endif %}

<h2>Requests that wait for you</h2>
{% for asked in waiting %}
<h3>{{ asked.who }} asks for {{ asked.terms["dataset"] }}</h3>
<table class="facts">
<tr><td>request</td><td><code>{{ asked.id }}</code></td></tr>
<tr><td>key of {{ asked.who }}</td><td><code>{{ asked.fingerprint }}</code></td></tr>
{% for name, text in asked.terms.items() %}
<tr><td>{{ name }}</td><td>{{ text }}</td></tr>
{% endfor %}
</table>
{% for words in asked.beyond %}
<p class="warn">{{ words }}: as long as that is so, a grant would let nothing through.</p>
{% endfor %}
<p>To say yes, to all of it or, with options such as <code>--uses 1</code>, to less; or no:</p>
<pre>{{ asked.approve }}
{{ asked.deny }}</pre>
{% else %}
<p class="soft">None.</p>
{% endfor %}

<h2>Datasets</h2>
{% if datasets %}
<div class="wide"><table>
<tr><th>dataset</th><th>offered</th><th>for</th><th class="n">ε granted jobs took</th><th class="n">of</th>
<th class="n">left</th><th class="n">ε composed</th><th class="n">of</th><th class="n">left</th></tr>
{% for data in datasets %}
<tr><td>{{ data.name }}{% if data.composed and data.composed.place %}
<span class="side soft">{{ data.composed.place }}</span>{% endif %}</td>
<td>{% if data.listing %}{% if data.listing.withdrawn %}<b class="warn">withdrawn</b>{% else %}about
{{ data.listing.card.rows | count }} rows{% endif %}<span class="side soft">version
{{ data.listing.card.version[:16] }}{% if data.listing.versions | length > 1 %}, one of
{{ data.listing.versions | length }}{% endif %}</span>
{%- else %}not published{% endif %}</td>
<td>{% if data.listing %}{{ data.listing.card.purposes | join(", ") }}<span class="side soft">
{{ data.listing.card.kinds | join(", ") }}; from {{ data.listing.card.min_cohort }} owners</span>{% endif %}</td>
<td class="n">{{ data.spent }}{% if data.held %}<span class="side soft">and {{ data.held }} set aside</span>
{%- endif %}</td>
<td class="n">{{ data.limit }}</td>
<td class="n">{{ data.left }}{% if data.share[1] %}{{ bar(*data.share) }}{% endif %}</td>
{% if data.composed %}
<td class="n">{{ "%.2f" | format(data.composed.spent) }}{% if data.composed.held > data.composed.spent %}
<span class="side soft">{{ "%.2f" | format(data.composed.held) }} with what is set aside</span>{% endif %}</td>
{% if data.composed.limit is none %}
<td class="n">{{ "no limit" if node else "the job file's limit" }}</td><td class="n"></td>
{% else %}
<td class="n">{{ "{:g}".format(data.composed.limit) }}</td>
<td class="n">{{ "%.2f" | format([data.composed.limit - data.composed.held, 0] | max) }}
{{- bar(data.composed.held, data.composed.limit) }}</td>
{% endif %}
{% else %}
<td class="n"></td><td class="n"></td><td class="n"></td>
{% endif %}</tr>
{% endfor %}
</table></div>
<p class="soft">Privacy is counted twice. <b>ε granted jobs took</b> is the plain sum of what each job was granted and
spent, against the budget on the dataset's card; it belongs to the name, through all versions. <b>ε composed</b> is what
all steps of all jobs together amount to at δ = 0.00001, by the accountant: less than the sum, against the limit of this
node (<code>fedseal node set --max-epsilon</code>) or of the job file. A job must pass both. What is set aside counts as
spent until the job ends.</p>
{% else %}
<p class="soft">Nothing is published and nothing was used: <code>fedseal data publish</code>.</p>
{% endif %}

<h2>Grants that count</h2>
{% if running %}
{% set grants = running %}
"""
    + _GRANTS
    + """
{% else %}
<p class="soft">None.{% if not node %} A local job makes one for itself, unless it is run with --strict.{% endif %}</p>
{% endif %}
{% if ended %}
<h2>Grants that count no more, or not yet</h2>
{% set grants = ended %}
"""
    + _GRANTS
    + """
{% if ended_all > ended | length %}<p class="soft">And {{ ended_all - ended | length }} older ones.</p>{% endif %}
{% endif %}

<h2>Uses</h2>
{% if uses %}
<div class="wide"><table>
<tr><th>when</th><th>job</th><th>run</th><th>dataset</th><th>by whom</th><th>grant</th><th>state</th>
<th class="n">ε set aside</th><th class="n">ε spent</th></tr>
{% for use in uses %}
<tr><td class="once">{{ use.time | clock }}</td><td>{{ use.job }}</td><td class="once"><code>{{ use.run }}</code></td>
<td>{{ use.dataset }}</td><td>{{ use.who }}</td><td class="once"><code>{{ use.grant[:16] }}</code></td>
<td>{{ use.state }}</td><td class="n">{{ use.asked }}</td><td class="n">{{ use.spent }}</td></tr>
{% endfor %}
</table></div>
{% if uses_all > uses | length %}<p class="soft">And {{ uses_all - uses | length }} older ones.</p>{% endif %}
{% else %}
<p class="soft">None.</p>
{% endif %}

<h2>Refusals</h2>
{% if refusals %}
<div class="wide"><table>
<tr><th>when</th><th>job</th><th>run</th><th>why</th></tr>
{% for refused in refusals %}
<tr><td class="once">{{ refused.time | clock }}</td><td>{{ jobs.get(refused.run, "") }}</td>
<td class="once"><code>{{ refused.run }}</code></td><td>{{ refused.words }}</td></tr>
{% endfor %}
</table></div>
{% else %}
<p class="soft">None.</p>
{% endif %}

<footer>{{ now | clock }}{% if refresh %}; the page is made anew every {{ refresh }} s{% endif %}. From this home alone;
nothing here can be changed by a click.</footer>
"""
)
