// Package attacks has tests alone: an attacker against a live cluster, whose servers are processes of
// the program in server. The attacker comes from other loopback addresses than the servers, and holds
// every certificate that it could ask for, up to that of a member whose process it has taken over.
//
//	cd conformance && go test -count=1 -v ./attacks
//
// What it does:
//
//	a member that lies  says that it holds every key, hands out wrong ones, and votes
//	certificates        of others' CAs, clusters and roles, malformed, removed, or none at all
//	impostors           answer where a member was
//	crowds              of thousands of clients that are silent or slow, before, in and after the handshake
//	raft frames         too large, too deep, cut short, and snapshots that have no end
//	calls               too large, malformed, or far too many keys in them
//	replays             of what a member has asked, as itself, as another one and as a non-member
//
// While it attacks, the cluster serves and rotates; when it has gone, the cluster is as it was: raft's
// configuration, keys, goroutines and descriptors. Figures of each attack are logged in the end. The
// attacker goes at a bounded rate: one that takes all of the processors attacks the machine, and not the
// software. It needs Linux, for /proc and for a loopback that is a whole network.
//
// A longer campaign, with all two thousand clients of a crowd dialling at once, and one of servers with
// the race detector:
//
//	go test -count=1 -timeout 1h -v ./attacks -attacks.time 1m -attacks.crowd 2000
//	go test -count=1 -timeout 1h -v ./attacks -attacks.race
package attacks
