#!/usr/bin/env bash
# Teach the version in use the pictures that have arrived since the last night, unless old classes suffer:
# docs/nightly.md.
#
#   nightly.sh FOLDER [MAX_DROP]     FOLDER holds current -> v7, new/CLASS/*.jpg and holdout/CLASS/*.jpg
#
# Exit codes are those of everclip: 0 done, or nothing new; 1 the check found broken pictures; 2 bad input;
# 3 old classes would lose more than MAX_DROP points (1). After any code but 0, current is unchanged. If the script is
# killed at any moment, the next night continues.
set -u
[ $# = 1 ] || [ $# = 2 ] || { echo "usage: nightly.sh FOLDER [MAX_DROP]" >&2; exit 2; }
cd "$1" || exit 2
[ -L current ] || { echo "$PWD/current is not a link to a version: make one, ln -s v1 current" >&2; exit 2; }
mkdir -p new learned

if [ -d learning ] && [ -s learning.to ] && [ "$(readlink current)" = "$(cat learning.to)" ]; then
    mv learning "learned/$(readlink current)"   # killed right after the switch
fi
no_empty() { find learning -type d -empty -delete; }   # everclip refuses a class without a picture
[ ! -d learning ] || no_empty
if [ ! -d learning ]; then                      # else: what the last night could not learn
    [ -n "$(find new ! -type d ! -name '.*')" ] || { echo "nothing new"; exit 0; }
    rm -f learning.to                           # left by an earlier night
    mv new learning && mkdir new && no_empty
fi

everclip data check imagefolder:learning --exact --json > check.json
code=$?
[ $code = 0 ] || { echo "the check ended with $code: see $PWD/check.json" >&2; exit $code; }

last=$(printf '%s\n' v[0-9]* | sed -n 's/^v\([0-9][0-9]*\)$/\1/p' | sort -n | tail -n 1)
next="v$((${last:-0} + 1))"
everclip update current --add imagefolder:learning --test imagefolder:holdout --max-drop "${2:-1}" \
    -o "$next" --json > verdict.json || exit    # 3: the reason is in $next.verdict.html

echo "$next" > learning.to
ln -sfn "$next" current.new && python3 -c 'import os; os.replace("current.new", "current")' || exit
mv learning "learned/$next"
echo "current is $next"
