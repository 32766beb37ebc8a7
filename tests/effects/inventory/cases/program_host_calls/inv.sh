#!/bin/sh
if [ "$1" = --list ]; then echo '{"g": ["a", "b"], "empty": {"hosts": []}}'
elif [ "$2" = a ]; then echo '{"x": "from --host"}'
fi
