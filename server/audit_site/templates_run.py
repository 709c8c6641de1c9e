"""How the page of one run looks."""

from __future__ import annotations

from server.audit_site.templates import ENTRY_ROWS, FOOT, NAV, PAGES
from server.web.html import template

RUN = template(
    NAV
    + """
<p class="eyebrow">run {{ run.run }}</p>
<h1>{{ title }}</h1>
<p class="verdict"><b class="{{ tones.get(run.state, "warn") }}">{{ run.state }}</b>{% if run.code %}: {{ run.code }}
{%- endif %}, by the coordinator's entries.
{% if verdict %}The verifier: {{ verdict.state }}, co-signed by {{ verdict.cosigned }}, quorum {{ verdict.quorum }}
{%- if not verdict_current %} (of the ledger as it was){% endif %}.
{% else %}<a href="/verify">Verify the ledger</a> to know how well it is witnessed.{% endif %}</p>
<table class="facts">
<tr><td>kind of job</td><td>{{ run.kind }}</td></tr>
<tr><td>job</td><td><code>{{ run.digest }}</code></td></tr>
{% if run.submitted %}<tr><td>submitted by</td><td>{{ run.submitted }}</td></tr>{% endif %}
<tr><td>began</td><td>{{ began }}</td></tr>
{% if run.model %}<tr><td>model</td><td><code>{{ run.model }}</code></td></tr>{% endif %}
<tr><td>entries</td><td>{{ run.first | count }} to {{ run.last | count }}, {{ run.entries | count }} of this run:
{% for kind, number in kinds.items() %}<a class="tag" href="{{ link("/entries", run=run.run, kind=kind) }}">{{ kind }}
{{ number }}</a> {% endfor %}</td></tr>
</table>

<h2>Parties</h2>
<div class="wide"><table>
<tr><th>party</th><th>role</th><th>on the roster</th><th>consent</th><th>grant</th><th class="n">ε said last</th>
<th class="n">entries</th></tr>
{% for party in parties %}
<tr><td><a href="{{ link("/entries", run=run.run, by=party.name) }}">{{ party.name }}</a></td><td>{{ party.role }}</td>
<td>{{ "yes" if party.name in run.roster else "" }}</td><td>{{ party.consent }}</td>
<td>{% if party.grant %}<a href="{{ link("/search", q=party.grant) }}"><code>{{ party.grant[:16] }}</code></a>
{% endif %}</td><td class="n">{{ party.epsilon }}</td><td class="n">{{ party.entries | count }}</td></tr>
{% endfor %}
</table></div>

{% if refusals %}
<h2>Refusals and failures</h2>
<div class="wide"><table>
<tr><th class="n">entry</th><th>ordered</th><th>kind</th><th>by</th><th>says</th></tr>
{% for item in refusals %}
<tr><td class="n"><a href="/entry/{{ item.seq }}">{{ item.seq }}</a></td><td class="once">{{ item.when }}</td>
<td>{{ item.kind }}</td><td>{{ item.by }}</td><td>{{ item.words }}</td></tr>
{% endfor %}
</table></div>
{% endif %}

<h2>Figures, and MLflow beside them</h2>
{% if mlflow.reading %}
<p class="warn">MLflow is being read; this page asks again by itself.</p>
{% elif mlflow.problem %}
<p class="soft">MLflow: {{ mlflow.problem }}.</p>
{% elif differing %}
<div class="unsafe"><h2>MLflow differs in {{ differing | count }} place{{ "" if differing == 1 else "s" }}</h2>
<ul>{% for words in differences %}<li>{{ words }}</li>{% endfor %}</ul></div>
{% else %}
<p><b class="good">MLflow shows the same</b>{% for what, number in mlflow.reconciled.compared.items() %},
{{ number }} {{ what }}{% endfor %}; run <code>{{ mlflow.reconciled.mlflow_run_id }}</code>.</p>
{% endif %}
{% if mlflow.reconciled and mlflow.reconciled.unchecked %}
<p class="soft">Not compared: {{ mlflow.reconciled.unchecked | join("; ") }}.</p>
{% endif %}
{% if rounds %}
<div class="wide"><table class="rounds">
<tr><th>round</th>{% for name in columns %}<th>{{ name }}</th>{% endfor %}<th>entry</th><th>missing</th></tr>
{% for item in rounds %}
<tr><td>{{ item.round }}</td>
{% for cell in item.cells %}
<td>{{ cell.ledger }}
{%- if cell.there and (cell.ledger or cell.differs) %}<span class="side {{ "bad" if cell.differs else "soft" }}">
{%- if cell.differs %}MLflow: {% endif %}{{ cell.mlflow }}</span>{% endif %}</td>
{% endfor %}
<td><a href="/entry/{{ item.seq }}">{{ item.seq }}</a></td><td>{{ item.missing }}</td></tr>
{% endfor %}
</table></div>
<p class="soft">{{ rounds_all | count }} records in all. Above the ledger's text, below what MLflow shows.
{% if first_round %}<a href="{{ link("/run", id=run.run) }}">From the first.</a>{% endif %}
{% if next_round %}<a href="{{ link("/run", id=run.run, round=next_round) }}">Later rounds.</a>{% endif %}</p>
{% else %}
<p class="soft">No round was recorded.</p>
{% endif %}

<h2>Statements in their order</h2>
"""
    + ENTRY_ROWS
    + PAGES
    + FOOT
)
