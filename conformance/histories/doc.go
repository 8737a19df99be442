// Package histories has tests alone: three to five processes of examples/controlplane under load, while
// the leader and others are killed and stopped, are killed and have their directories deleted, and their
// network fails: cut off, heard and hearing nothing, not heard, packets from one to another dropped one
// way, each fifth packet dropped, and a server that comes back under another address. Meanwhile keys are rotated and removed. What clients saw is checked with porcupine to be linearizable:
// the secrets at each path, and which key is active.
//
//	cd conformance && go test -count=1 ./histories
//
// A campaign of half an hour, on five servers with the race detector in them, with another seed each time
// unless one is given. With -artifacts the servers' logs are kept:
//
//	go test ./histories -run Histories -histories.race -histories.time 30m -histories.servers 5 -timeout 60m -v [-histories.seed N]
//
// The invariants of the keyring are looked for in all that the servers say and leave behind:
//
//	I1   material, wrapped or not, and KEKs are searched for in every spelling in the raft directories, in
//	     all else beside the key files, and in all that the servers have logged
//	I2   in every status that any server has given; and in the state at 50 indexes of the log
//	I3   whenever a key is seen active, a majority of the key files is there and opens
//	I4   from the history of which key is active, and by the log's own order
//	I5   all that was ever stored opens on every server in the end, also what is of long ago and under old
//	     keys; a key that is removed meanwhile takes nothing with it
//	I6   the files of a key have the same material on all servers. Wrong material is for other tests
//	I7   the snapshot and log of each server are applied again: at the same index the same bytes, on all
//	I8   every key file of a server that was killed opens; nothing is set aside, and no temporary file is
//	     left in the end
//	I9   every server is ready in the end, lacks no key and has what the leader has; one that was wiped has
//	     come back by itself, and votes
//	I10  every server that is told to end does so within seconds and with success. That no goroutine is left
//	     is for other tests
//
// A server that was started shows no JWKS until it has caught up with what was committed before its
// start, and never one without the key that was active then.
//
// A race or a panic in any server fails the test at once.
//
// Servers have network namespaces of their own, for which it needs root and ip and tc (Debian's
// iproute2), and Linux with cls_bpf. Without root, ip and tc, and without CI in the environment, only
// the other faults are made.
package histories
