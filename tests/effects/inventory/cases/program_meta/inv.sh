#!/bin/sh
[ "$1" = --list ] || exit 3
echo '{"g": {"hosts": ["a", "b"], "vars": {"v": 1, "t": "{{ x }}", "u": {"__ansible_unsafe": "{{ y }}"}}, "children": ["k"]}, "k": {"hosts": ["c"]},'
echo '"_meta": {"hostvars": {"a": {"x": 1.0, "l": [1, "z"]}, "unknown": {"q": 1}}}}'
echo "it talks" >&2
