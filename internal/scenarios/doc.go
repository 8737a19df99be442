// Package scenarios holds the tests of whole clusters, and no code: several servers with a raft and a keyring each,
// through faults, restarts and months of virtual time. They use what a host uses, the public packages, on the disks,
// clocks and networks of internal/keyringtest. A test of one part lies beside that part.
package scenarios
