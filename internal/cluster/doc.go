// Package cluster is one server of a cluster in which raft is the library's own: raft's log and snapshots on disk, and
// mutual TLS on one port; how a cluster is bootstrapped, how a server joins it, and how it is found when it has moved.
//
// A [Port] needs no more than that: a host which has a raft of its own can run it, and the calls of the keyrings, over
// a Port.
package cluster
