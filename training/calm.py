#!/usr/bin/env python3
"""Copies calm messages of a corpus, for the models of distress and fraud: lines of FILE whose text looks like neither.

python3 training/calm.py FILE > calm.jsonl

FILE has a JSON object with `text` a line. Corpora of support chats have no labels for distress and fraud, and contain both, so every
line with one of these words is left out, whatever it says.
"""

import json
import re
import sys

LEFT_OUT = re.compile(
    r"stol|steal|thief|theft|hack|fraud|scam|phish|unauthor|compromis|not recogni|n.t recogni|don.?t know (what|who)"
    r"|did ?n.?t (make|do|author|order|request|buy)|never (made|ordered|author)|someone|somebody|lost (my|the) (card|phone|wallet)"
    r"|identity|without my (permission|knowledge)|not mine|cloned|suspicious|died|passed away|death|funeral|suicid|hospital",
    re.IGNORECASE,
)

with open(sys.argv[1], encoding="utf-8") as lines:
    for line in lines:
        row = json.loads(line)
        if not LEFT_OUT.search(row["text"]):
            print(json.dumps({"text": row["text"], "kind": "", "src": row.get("src", "")}, ensure_ascii=False))
