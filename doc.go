// Package keyring gives a service on hashicorp/raft an encryption and signing keyring.
//
// The leader encrypts and signs. Every server decrypts and verifies. Keys rotate by themselves. Losing any single server of
// three, even in the middle of a rotation, never makes data undecryptable.
//
// Key metadata lives in a raft FSM. Key material never does: each server keeps it in its own directory, one
// <key id>.nks.json file a key, wrapped under key encryption keys that no other server has. A server that lacks a key fetches
// it from the others.
//
// # Start
//
// The program that embeds this library is its host. One without a raft of its own starts a whole server with package node:
//
//	n, err := node.Start(ctx, node.Config{
//		Dir:  dir,
//		KEKs: []keyring.KEK{kek}, // see FileKEK
//	})
//	if err != nil {
//		return err
//	}
//	defer n.Close()
//	if err := n.Keyring().WaitReady(ctx); err != nil {
//		return err
//	}
//	ciphertext, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7"))
//	if err != nil {
//		return err
//	}
//	plaintext, err := n.Decrypt(ctx, ciphertext, []byte("users/7"))
//
// A host that has a raft gives it the FSM of [NewFSM], alone or in a [Mux] with its own FSM, and opens the keyring on that raft:
//
//	fsm := keyring.NewFSM()
//	r, err := raft.NewRaft(conf, keyring.Mux(fsm, app), logs, stable, snapshots, transport)
//	if err != nil {
//		return err
//	}
//	keys, err := keyring.Open(ctx, keyring.Config{
//		Dir: dir, ID: conf.LocalID, Raft: r, FSM: fsm, Transport: peers, KEKs: []keyring.KEK{kek},
//	})
//
// Package port has the transport and the Transport of such a host, on one port; the module grpc has them for a grpc.Server.
// The example of [Open] runs as it is.
//
// # Where to go next
//
//   - Encrypt data: [Keyring.Encrypt], [Keyring.Decrypt]. A host that keeps the ciphertexts in its raft takes the map of
//     package records, or writes them through [Keyring.EncryptTo] and asks [FSM.Admit] in its Apply.
//   - Sign tokens: [Keyring.Sign], [Keyring.Verify], and [Keyring.WellKnown] for relying parties; [TokenPolicy].
//   - Rotate and remove keys: [RotationPolicy], [Keyring.Rotate], [Keyring.Remove]; [SealedData] for a full rotation.
//   - Protect the key files: [FileKEK], [PassphraseKEK], [AgeKEK] as escrow, and the module kms. [Keyring.Rewrap] changes them.
//   - Change the members on the leader: [Keyring.AddVoter], [Keyring.AddNonvoter], [Keyring.PromoteServer],
//     [Keyring.DemoteServer], [Keyring.RemoveServer], [Keyring.ReadmitServer] and [Keyring.TransferLeadership]; join tokens,
//     see [JoinConn]. [Keyring.Leave] removes the server on which it is called.
//   - Back up: [BackupSchedule], [Keyring.WriteBackup], [VerifyBackup], [Restore].
//   - Operate: [Keyring.Status], package admin, Config.Audit, Config.Metrics with packages gometrics and prometheus.
//     Config.Problems adds what is wrong with the host's part to [Status].
//
// README.md and docs/README.md of the repository have a page for each subject, and for each kind of trouble.
//
// # Words
//
//	root key   32 random bytes and one signing key pair, named by a UUID; immutable
//	material   the secret part of a root key; metadata is all the rest, the public key included
//	KEK        key encryption key: wraps material on one server; never shared, never in raft
//	rotate     make a new active key
//	rekey      move the host's data from an old key to the active one
//	rewrap     wrap the same material under other KEKs
//	holder     a server on whose disk a key is safe: file and directory synced, whoever wrote them, read back,
//	           unwrapped, check value right
//	orphan     a key file without metadata in the FSM
//	tombstone  what is left of a removed key: its ID is never used again
//	host       the program that embeds this package
//	ring       the metadata of all keys, as a server's FSM has it
//
// # Key states
//
//	prepublished --activate--> active --rotate--> inactive --> rekeying --> deprecated --> removed
//
// A prepublished key is known to all servers and has sealed nothing. At most one key is active: it seals and signs, on the
// leader. Inactive and rekeying keys open what they sealed. A deprecated key opens nothing, except through
// [Keyring.DecryptDeprecated], or if it was adopted: a ciphertext under it is a copy, or forged. A key never returns to an
// earlier state.
//
// The tokens of inactive, rekeying and deprecated keys verify for TokenPolicy.MaxTTL and the leeway after
// the key was retired, unless the key is revoked.
//
// A rekeying key becomes deprecated, and can be removed, when a scan of the host's data has found nothing under it. A key is
// removed only if the operator or RotationPolicy.Retain asks for it. There is one exception: the leader removes a prepublished
// key if every server has said that it has no material of it. The file of a removed key is set aside for a while, so that a
// snapshot from before the removal brings the key back.
//
// # Invariants
//
//	I1   No material, wrapped or not, enters the raft log, a raft snapshot, a log line, an error,
//	     a metric or a temporary file that outlives the call.
//	I2   At most one key is active, on every server, at every index.
//	I3   A key becomes active only when a majority of the voters hold it, asked just before. The
//	     FSM refuses the command otherwise. An active key that came with a snapshot seals and signs
//	     only after a majority of the voters has told this leader since then that they hold it.
//	I4   Only the active key seals or signs, and only on a leader that has applied the barrier of its
//	     own term, and has read the ring after that. Before, the call returns ErrNotReady.
//	I5   A ciphertext opens on every holder of its key until a scan has found nothing under that key,
//	     and with DecryptDeprecated for as long as the key is in the FSM. Without force, a key can't be
//	     removed while a record in this raft is sealed under it, as long as [FSM.Admit] guards the
//	     host's Apply.
//	I6   A fetched or loaded key is used only if it matches the check value in the FSM.
//	I7   Apply is total and deterministic: no clock, no randomness, no map order, no I/O, no
//	     panic. The same log gives byte-equal snapshots on every server.
//	I8   A key file is only created, replaced whole by rename, set aside, or unlinked after its
//	     tombstone. A file is renamed or unlinked because of the ring only on a server that has caught
//	     up with a leader since its start. A crash at any point, a full disk or a failed sync loses no
//	     key, and leaves nothing that prevents a start.
//	I9   Live servers converge: every server that can reach one holder becomes one, no matter
//	     which other keys are lost or which peers are down. A key whose file is here, and whose KEK
//	     does not answer, or whose file is of a newer build, another user's, or not to be read, waits for that instead.
//	I10  After Close no goroutine of the package runs, and the key bytes it owns are overwritten. If
//	     something hangs that ignores its context, a function of the host's too, Close says so after a while, and no goroutine of the
//	     package runs when that has returned. Ciphers that crypto/aes has expanded, signing keys of
//	     crypto/rsa and crypto/ecdsa, and the buffers in which age encrypts and decrypts for [AgeKEK], are left to the
//	     garbage collector, which in a build with GOEXPERIMENT=runtimesecret overwrites the
//	     ciphers, and what parsing made of the signing keys, when it frees them. A derivation of [PassphraseKEK]
//	     that has begun ends by itself, within seconds.
//
// # How a key is made
//
// The leader makes it, writes its own file, offers it to the other servers and proposes add.
// Every server that lacks it fetches it, from the leader first, writes the file, reads it
// back and reports itself a holder. When the key is due, the leader asks live which servers hold it
// now, and proposes activate with the answers of a majority. The FSM refuses the command
// unless each of them is recorded as a holder with the keystore that answered: a wiped
// server has another keystore, and its old holds no longer count.
//
// # The packages behind this one
//
// CONTRIBUTING.md lists them, which may import which, and where a change goes.
package keyring
