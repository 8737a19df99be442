// Package attacks has tests alone: an attacker against a live cluster, whose servers are processes of
// the program in server. The attacker comes from other loopback addresses than the servers, and holds
// every certificate that it could ask for, up to that of a member whose process it has taken over.
//
//	cd conformance && go test -count=1 ./attacks
//
// While it attacks, the cluster serves; when it has gone, the cluster is as it was: term, raft
// configuration and keys, goroutines and descriptors. It goes at a bounded rate: one that takes all of
// the processors attacks the machine, and not the software. It needs Linux, for /proc and for a
// loopback that is a whole network. A longer campaign, and servers with the race detector:
//
//	go test -count=1 -timeout 1h -v ./attacks -attacks.time 5m
//	go test -count=1 -v ./attacks -attacks.race
package attacks
