// Package node runs a whole server of a service that has no raft of its own: raft, its log and snapshots on disk,
// mutual TLS on one port, and the keyring.
//
// Start starts a [Node], on one server alone or on each server of a cluster. A Node forwards to the leader what only
// the leader can do, so its methods may be called on any server. Recover and Restore make a directory from which a
// cluster can start again.
//
// A service that has a raft already uses package keyring alone, which has the calls for members and join tokens too.
// Its calls for the leader work on the leader alone; those of a Node go to it.
//
// # What a Node forwards
//
// The methods of a keyring.Keyring that only the leader can do, the method of a Node that does the same on any server, and why
// there is none:
//
//	AcceptJoin            -                     the leader's port calls it
//	AddNonvoter           AddNonvoter
//	AddServer             AddServer
//	AddVoter              AddServer             the leader promotes by itself, when the server holds every key
//	Adopt                 Adopt
//	AppendEncrypt         Encrypt
//	Backup                -                     see WriteBackup
//	CheckMembers          -                     the calls that change members ask it by themselves
//	ConfirmBackup         ConfirmBackup
//	DemoteServer          DemoteServer
//	EncodeStatus          Status
//	Encrypt               Encrypt
//	EncryptTo             EncryptTo             the function that stores is called here
//	LeaderProof           -                     the leader's port calls it
//	MakeJoinToken         JoinToken
//	PromoteServer         PromoteServer
//	PromoteServers        -                     the leader does it by itself
//	ReadmitServer         -                     the leader does it by itself, when a server joins again with an empty directory
//	Remove                Remove
//	RemoveServer          RemoveServer
//	Rotate                Rotate
//	Sign                  Sign
//	SignTyped             SignTyped
//	StartRemoval          Remove                when its context ends, the leader goes on
//	TransferLeadership    TransferLeadership
//	TransferLeadershipTo  TransferLeadershipTo
//	WithdrawJoinToken     WithdrawJoinToken
//	WriteBackup           -                     it is as long as the App's data, and a message between servers has 1 MiB at most
//
// So a backup is made on the leader: by the schedule of Config.Backups, or have the host of the server that Leader names call
// WriteBackup of its Keyring. Where the backup is stored, ConfirmBackup of any Node says that it is safe. [Node.Apply] is not
// forwarded either: what commands and answers of the App look like, and which may be made twice, the host knows.
//
// A leader of an older build may not know a call: then the error says so, and nothing was done.
package node
