// Package node runs a whole server for a service that has no raft of its own: raft, its log and snapshots on
// disk, mutual TLS on one port, and the keyring.
//
// Each server of a cluster is started the same way:
//
//	n, err := node.Start(ctx, node.Config{
//		ID:      "s1",
//		Dir:     "/var/lib/myservice",
//		KEKs:    []keyring.KEK{kek},
//		Addr:    "10.0.0.1:7900",
//		Cluster: "prod",
//		TLS:     keyring.TLSFiles("tls.crt", "tls.key", "ca.crt"),
//		Peers:   map[raft.ServerID]string{"s1": "10.0.0.1:7900", "s2": "10.0.0.2:7900", "s3": "10.0.0.3:7900"},
//	})
//	if err != nil {
//		return err
//	}
//	defer n.Close()
//	if err := n.Keyring().WaitReady(ctx); err != nil {
//		return err
//	}
//	ciphertext, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7"))
//
// A server alone needs Dir and KEKs: the example of [Start] runs as it is. A [Node] forwards to the leader
// what only the leader can do, so its methods may be called on any server. What every server can do is done
// by the Keyring of the Node, such as Verify and WellKnown.
//
// A service that has a raft uses package keyring itself, with package port. Its calls for the leader work on
// the leader alone.
//
// # Where to go next
//
//   - Add a server: [Node.JoinToken] on a member, and Config.Join and Config.JoinToken on the new one. See
//     also [Node.RemoveServer], [Node.Leave] and [Node.TransferLeadership].
//   - Keep the service's own state in the same raft: Config.App and [Node.Apply], or the map of package
//     records.
//   - Most servers are lost: [Recover] starts a cluster from one that is left, [Restore] from a backup.
//   - Give operators what they expect: package admin takes a Node as it is.
//
// docs/embedding.md and docs/members.md of the repository say more.
//
// # What a Node forwards
//
// The methods of a keyring.Keyring that only the leader can do, the method of a Node that does the same on
// any server, and why there is none:
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
// So a backup is made on the leader: by the schedule of Config.Backups, or have the host of the server that
// Leader names call WriteBackup of its Keyring. Where the backup is stored, ConfirmBackup of any Node says
// that it is safe. [Node.Apply] is not forwarded either: what commands and answers of the App look like, and
// which may be made twice, the host knows.
//
// A leader of an older build may not know a call: then the error says so, and nothing was done.
package node
