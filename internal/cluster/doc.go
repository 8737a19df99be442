// Package cluster is one server of a cluster in which raft is the library's own: raft's log and snapshots on disk, and how a
// cluster is bootstrapped, recovered and restored. What goes over its port is package port's.
package cluster
