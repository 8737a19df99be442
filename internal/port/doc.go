// Package port is the port of one server: a listener with mutual TLS on which raft and the keyring talk to the other
// servers of the cluster. It has the certificates, limits, membership checks and removals; how a server joins, is found when it
// has moved, and learns that it was removed. Of raft's log and disk it knows nothing, so a host with a raft of its own runs on
// it too.
package port
