# Runs in a workspace, as its login user, in the home: notes in the clone in the directory $1 what the host has fetched,
# so that it counts as saved. The standard input has lines "OBJECT BRANCH".
cd && cd -- "$1" || exit
while read -r object branch; do
  git update-ref "refs/remotes/host/$branch" "$object"
done
