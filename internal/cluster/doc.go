// Package cluster is one server of a cluster in which raft is the library's own: raft's log and snapshots on disk, and
// its port; how a cluster is bootstrapped, how a server joins it, and how it is found when it has moved.
package cluster
