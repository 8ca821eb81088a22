# Runs in a workspace, as its login user, in the home: makes a clone of what comes on the standard input. $1 is its
# directory, $2 its branch, $3 the format of its objects, $4 and $5 the name and address for commits. Lines for
# `git update-ref`, an empty line, the commits without parents of a shallow clone, an empty line; then a pack.
set -e
command -v git >/dev/null || exit 90
cd
if [ -e "$1" ] || [ -L "$1" ]; then exit 91; fi
new=.hutch-clone
rm -rf -- "$new"
trap 'cd; rm -rf -- "$new"' EXIT
git init -q --object-format="$3" -- "$new"
cd -- "$new"
lines() { while IFS= read -r line && [ -n "$line" ]; do printf '%s\n' "$line"; done; }
lines >.git/hutch-refs
lines >.git/shallow
[ -s .git/shallow ] || rm .git/shallow
git index-pack --stdin >/dev/null
git update-ref --stdin <.git/hutch-refs
rm .git/hutch-refs
git symbolic-ref HEAD "refs/heads/$2"
git config user.name "$4"
git config user.email "$5"
git reset -q --hard
cd
mv -T -- "$new" "$1"
trap - EXIT
