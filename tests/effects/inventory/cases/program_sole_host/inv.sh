#!/bin/sh
echo '{"solo": {"x": "text", "n": 1}, "_meta": {"hostvars": {"solo": {"z": 3}}}}'
