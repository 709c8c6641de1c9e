"""How the pages look, but for that of a run."""

from __future__ import annotations

from server.web.html import template

NAV = """
<nav><a href="/">runs</a><a href="/entries">entries</a><a href="/checkpoints">checkpoints</a>
<a href="/verify">verify</a>
<form action="/search" method="get"><input name="q" size="28" maxlength="200" aria-label="search"
placeholder="run, name, party, kind, digest"><button>search</button></form></nav>
"""
FOOT = """
<footer>{{ now | clock }}. Read only. <code>{{ ledger }}</code>; this page proves nothing, the ledger does:
<code>fedseal audit verify --ledger {{ ledger_quoted }}</code></footer>
"""
PAGES = """
{% if earlier or later %}
<p class="pages">{% if earlier %}<a href="{{ earlier }}">earlier</a>{% endif %}
{% if later %}<a href="{{ later }}">later</a>{% endif %}</p>
{% endif %}
"""
RUN_ROWS = """
<div class="wide"><table>
<tr><th>run</th><th>name</th><th>kind</th><th>state</th><th>began</th><th>parties</th><th class="n">entries</th></tr>
{% for run in runs %}
<tr><td class="once"><a href="{{ link("/run", id=run.run) }}"><code>{{ run.run }}</code></a></td>
<td>{{ run.name }}</td><td class="once">{{ run.kind }}</td>
<td class="once"><b class="{{ tones.get(run.state, "warn") }}">{{ run.state }}</b> {{ run.code }}</td>
<td class="once">{{ when(run.began) }}</td>
<td>{{ run.parties[:8] | join(", ") }}{% if run.parties | length > 8 %} and {{ run.parties | length - 8 }}
more{% endif %}</td>
<td class="n">{{ run.entries | count }}</td></tr>
{% endfor %}
</table></div>
"""
ENTRY_ROWS = """
<div class="wide"><table>
<tr><th class="n">entry</th><th>ordered</th><th>kind</th><th>signed by</th>
{%- if run is not defined %}<th>run</th>{% endif %}<th>says</th></tr>
{% for item in entries %}
<tr><td class="n"><a href="{{ link("/entry/" ~ item.row.seq) }}">{{ item.row.seq }}</a></td>
<td class="once">{{ item.when }}</td><td class="once">{{ item.row.kind }}</td><td class="once">{{ item.row.by }}</td>
{% if run is not defined %}
<td class="once">{% if item.row.run %}<a href="{{ link("/run", id=item.row.run) }}"><code>
{{- item.row.run[:16] }}</code></a>{% endif %}</td>
{% endif %}
<td>{{ item.words }}</td></tr>
{% endfor %}
</table></div>
"""
VERDICT = """
{% if checked.running %}
<p class="verdict"><b class="warn">Being verified.</b> {{ checked.read | count }} of {{ size | count }} entries read;
<a href="/verify">how it goes on</a>.</p>
{% elif checked.problem %}
<p class="verdict"><b class="bad">Not verified.</b> {{ checked.problem }}.</p>
{% elif checked.report %}
<p class="verdict"><b class="{{ verdict_tone }}">{{ verdict_word }}</b>, verified {{ ago(now, checked.at) }}
{%- if not checked.current %}; <b class="warn">the ledger was written to since</b>{% endif %}.
<a href="/verify">The verdict</a>.</p>
{% else %}
<p class="verdict"><b class="warn">Not verified yet</b> since this page was opened.</p>
{% endif %}
"""

RUNS = template(
    NAV
    + """
<p class="eyebrow">{{ log }}</p>
<h1>{{ title }}</h1>
"""
    + VERDICT
    + """
{% if rewritten %}
<div class="unsafe"><h2>The ledger was changed</h2><p>At {{ rewritten | clock }} it no longer continued what was
read before: entries were cut or rewritten, or another ledger was put in its place. Verify it against a checkpoint
that you kept: <code>fedseal audit verify --since kept.checkpoint</code>.</p></div>
{% endif %}
<div class="tiles">
<div class="tile"><b>{{ all | count }}</b><span>runs</span></div>
<div class="tile"><b>{{ size | count }}</b><span>entries</span></div>
<div class="tile"><b>{% if newest %}{{ newest.size | count }}{% else %}none{% endif %}</b>
<span>entries under the newest checkpoint</span></div>
<div class="tile"><b>{% if newest %}{{ newest.parties + newest.outside }}{% else %}0{% endif %}</b>
<span>co-signed it</span></div>
</div>
<form action="/verify" method="get"><button>verify the ledger</button></form>
<form action="/" method="get">
<input name="q" size="24" maxlength="200" value="{{ wanted.q }}" aria-label="run, name or digest"
placeholder="run, name, digest">
<select name="kind" aria-label="kind"><option value="">any kind</option>
{% for kind in kinds %}<option{% if kind == wanted.kind %} selected{% endif %}>{{ kind }}</option>{% endfor %}</select>
<select name="status" aria-label="status"><option value="">any state</option>
{% for state in states %}<option{% if state == wanted.status %} selected{% endif %}>{{ state }}</option>{% endfor %}
</select>
<input name="party" size="14" maxlength="64" value="{{ wanted.party }}" aria-label="party" placeholder="party">
<button>show</button></form>
<p class="soft">{{ found | count }} run{{ "" if found == 1 else "s" }}, newest first; page {{ page_number }} of
{{ pages }}.</p>
"""
    + RUN_ROWS
    + """
<p class="pages">{% if newer %}<a href="{{ newer }}">newer</a>{% endif %}
{% if older %}<a href="{{ older }}">older</a>{% endif %}</p>
<p class="soft">States are what the coordinator's entries say; whether they hold is for the verifier.</p>
"""
    + FOOT
)

ENTRIES = template(
    NAV
    + """
<h1>{{ title }}</h1>
<form action="/entries" method="get">
<input name="run" size="18" maxlength="128" value="{{ wanted.run }}" aria-label="run" placeholder="run id">
<select name="kind" aria-label="kind"><option value="">any kind</option>
{% for kind in kinds %}<option{% if kind == wanted.kind %} selected{% endif %}>{{ kind }}</option>{% endfor %}</select>
<input name="by" size="14" maxlength="64" value="{{ wanted.by }}" aria-label="signed by" placeholder="signed by">
<input name="from" size="9" maxlength="16" aria-label="from entry" placeholder="from entry">
<button>show</button></form>
"""
    + ENTRY_ROWS
    + PAGES
    + FOOT
)

ENTRY = template(
    NAV
    + """
<p class="eyebrow">{{ log }}</p>
<h1>{{ title }}</h1>
<p class="verdict">{% if judged.good %}<b class="good">Holds:</b>{% else %}<b class="bad">Does not hold:</b>
{% endif %} {{ judged.words }}.</p>
{% if differs %}
<p class="bad">The ledger's columns say something else than the entry.</p>
{% endif %}
<table class="facts">
<tr><td>kind</td><td>{{ row.kind }}{% if kind_words %}: {{ kind_words }}{% endif %}</td></tr>
<tr><td>signed by</td><td>{{ row.by }}</td></tr>
{% if judged.signer %}
<tr><td>its card</td><td><code>{{ judged.signer.fingerprint }}</code>
{%- if judged.now %}; {{ judged.now }}{% endif %}</td></tr>
<tr><td>its Ed25519 key</td><td><code>{{ judged.signer.key }}</code></td></tr>
{% endif %}
<tr><td>run</td><td>{% if row.run %}<a href="{{ link("/run", id=row.run) }}"><code>{{ row.run }}</code></a>
{% else %}none{% endif %}</td></tr>
<tr><td>ordered</td><td>{{ when }}, by the coordinator's clock</td></tr>
<tr><td>leaf hash</td><td><code>{{ leaf_hash }}</code></td></tr>
<tr><td>entry before</td><td><code>{{ prev }}</code></td></tr>
</table>
<p class="pages">{% if row.seq %}<a href="/entry/{{ row.seq - 1 }}">entry {{ row.seq - 1 }}</a>{% endif %}
{% if row.seq + 1 < size %}<a href="/entry/{{ row.seq + 1 }}">entry {{ row.seq + 1 }}</a>{% endif %}
<a href="/entry/{{ row.seq }}/raw">its bytes</a>
{% if judged.covered %}<a href="/entry/{{ row.seq }}/proof">inclusion proof</a>{% endif %}</p>
{% if judged.covered %}
<p class="soft">The proof is checked offline by
<code>python -m fl_core.trust.verify entry-{{ row.seq }}.proof.json</code>. That the signer's card is whose name it
bears is not in it: the verifier follows all cards from the first entry on.</p>
{% endif %}
<h2>What it says</h2>
{% if pretty %}<pre>{{ pretty | lines }}</pre>{% else %}<p class="bad">No entry of this format.</p>{% endif %}
<h2>As it is signed and hashed</h2>
<pre>{{ raw | lines }}</pre>
"""
    + FOOT
)

SEARCH = template(
    NAV
    + """
<h1>{{ title }}</h1>
<p class="soft">Searched for: {{ q or "nothing" }}.</p>
{% if entry is not none %}<p><a href="/entry/{{ entry }}">Entry {{ entry }}</a></p>{% endif %}
{% if kind %}<p><a href="{{ link("/entries", kind=kind) }}">Entries of kind {{ kind }}</a></p>{% endif %}
{% if party %}<p><a href="{{ link("/entries", by=party) }}">Entries that {{ party }} signed</a>,
<a href="{{ link("/", party=party) }}">its runs</a></p>{% endif %}
{% if runs %}
<h2>Runs</h2>
"""
    + RUN_ROWS
    + """
{% if more_runs %}<p><a href="{{ more_runs }}">all of them</a></p>{% endif %}
{% endif %}
{% if is_digest %}
<h2>Entries with a digest that starts so</h2>
{% if hits %}
<div class="wide"><table>
<tr><th class="n">entry</th><th>kind</th><th>signed by</th><th>as</th><th>digest</th></tr>
{% for hit in hits %}
<tr><td class="n"><a href="/entry/{{ hit.row.seq }}">{{ hit.row.seq }}</a></td><td>{{ hit.row.kind }}</td>
<td>{{ hit.row.by }}</td><td>{{ hit.place }}</td><td><code>{{ hit.digest[:128] }}</code></td></tr>
{% endfor %}
</table></div>
{% else %}
<p class="soft">None{% if further %} down to entry {{ searched }}{% endif %}.</p>
{% endif %}
{% if further %}<p><a href="{{ further }}">in earlier entries</a></p>{% endif %}
{% elif not runs and not kind and not party and entry is none %}
<p>Nothing is called so. A digest is searched for by its first 8 hex digits or more.</p>
{% endif %}
"""
    + FOOT
)

CHECKPOINTS = template(
    NAV
    + """
<p class="eyebrow">{{ log }}</p>
<h1>{{ title }}</h1>
<p>A checkpoint is the coordinator's signature over the first so many entries. Keep one: a ledger that does not continue
it is a forgery (<code>fedseal audit verify --since FILE</code>).</p>
{% if largest %}
<form action="/consistency" method="get">
<label>prove that the log over <input name="old" size="9" maxlength="16" value="{{ smallest }}"></label>
<label>entries was continued, unchanged, to <input name="new" size="9" maxlength="16" value="{{ largest }}"></label>
<button>proof</button></form>
{% endif %}
<table>
<tr><th class="n">entries</th><th class="n">co-signed by parties</th><th class="n">by witnesses from outside</th>
<th>note</th></tr>
{% for item in checkpoints %}
<tr><td class="n">{{ item.size | count }}</td><td class="n">{{ item.parties }}</td><td class="n">{{ item.outside }}</td>
<td><a href="{{ link("/checkpoint", size=item.size) }}">with its co-signatures</a></td></tr>
{% endfor %}
</table>
<p class="pages">{% if earlier %}<a href="{{ earlier }}">earlier</a>{% endif %}</p>
"""
    + FOOT
)

VERIFY = template(
    NAV
    + """
<p class="eyebrow">{{ log }}</p>
<h1>{{ title }}</h1>
{% if checked.running %}
<p class="verdict"><b class="warn">Being verified.</b> {{ checked.read | count }} of {{ size | count }} entries
read.</p>
{% elif checked.problem %}
<p class="verdict"><b class="bad">Not verified.</b> {{ checked.problem }}.</p>
{% elif report %}
<p class="verdict"><b class="{{ tone }}">{{ word }}.</b>
{% if report.first_bad is not none %}First bad: <a href="/entry/{{ report.first_bad }}">entry
{{ report.first_bad }}</a>: {{ report.reason }}.{% elif report.status %}{{ report.reason }}.{% endif %}</p>
{% if not checked.current %}
<p class="warn">The ledger was written to since; this is about what it was.</p>
{% endif %}
<table class="facts">
<tr><td>log</td><td><code>{{ report.log }}</code></td></tr>
<tr><td>coordinator's key</td><td><code>{{ report.coordinator }}</code>{% if key %}, as expected{% endif %}</td></tr>
<tr><td>entries</td><td>{{ report.entries | count }}, all before {{ report.sound | count }} beyond doubt</td></tr>
<tr><td>head</td><td><code>{{ report.root }}</code> over {{ report.size | count }}</td></tr>
<tr><td>checked</td><td>{{ report.signatures | count }} signatures, {{ report.checkpoints | count }}
checkpoints</td></tr>
<tr><td>kept checkpoint</td><td>{% if kept %}{{ "see above" if report.status == 1 else "continued" }}
{%- else %}none was given (--since): a log that was issued anew as a whole is not noticed{% endif %}</td></tr>
<tr><td>verified</td><td>{{ checked.at | clock }}, in {{ report.seconds | duration }}</td></tr>
</table>
{% endif %}
{% if not checked.running %}
<form action="/verify" method="get"><input type="hidden" name="again" value="1"><button>verify again</button></form>
{% endif %}
{% if told_runs and not checked.running %}
<h2>Runs</h2>
<div class="wide"><table>
<tr><th>run</th><th>its evidence</th><th class="n">entries</th><th class="n">co-signed by</th>
<th class="n">quorum</th></tr>
{% for name, run, lacking in told_runs %}
<tr><td><a href="{{ link("/run", id=name) }}"><code>{{ name }}</code></a></td>
<td>{% if lacking %}<b class="warn">{{ run.state }}</b>{% else %}{{ run.state }}{% endif %}</td>
<td class="n">{{ run.entries | count }}</td><td class="n">{{ run.cosigned }}</td>
<td class="n">{{ run.quorum }}</td></tr>
{% endfor %}
</table></div>
{% if untold %}<p class="soft">And {{ untold | count }} more.</p>{% endif %}
<p class="soft">witnessed: more than half of its parties and one co-signed its end. short: fewer did. stopped: the
coordinator recorded its failure. open: under way, or cut off. idle: nothing happened.</p>
{% endif %}
"""
    + FOOT
)

WRONG = template(
    NAV
    + """
<h1>{{ title }}</h1>
<p>{{ words }}.</p>
"""
    + FOOT
)
