// Package keyring gives a service on hashicorp/raft an encryption and signing keyring.
//
// The leader encrypts and signs; every server decrypts and verifies. Keys rotate by themselves.
// Key metadata lives in a raft FSM. Key material never does: each server keeps it in its own
// directory, one <key id>.nks.json file a key, wrapped under key encryption keys that no other
// server has. A server that lacks a key fetches it from the others.
//
// [Start] runs a whole server, a [Node], for a service with no raft of its own. A host that
// has a raft gives it a [NewFSM], alone or in a [Mux] with its own FSM, and calls [Open].
// [Keyring.WaitReady] then tells when [Keyring.Decrypt] and [Keyring.Verify] work, and on the leader
// [Keyring.Encrypt] and [Keyring.Sign].
//
// # Words
//
//	root key   32 random bytes and one signing key pair, named by a UUID; immutable
//	material   the secret part of a root key; metadata is all the rest, the public key included
//	KEK        key encryption key: wraps material on one server; never shared, never in raft
//	rotate     make a new active key
//	rekey      move the host's data from an old key to the active one
//	rewrap     wrap the same material under other KEKs
//	holder     a server that has a key durable: file and directory synced, read back, unwrapped,
//	           check value right
//	host       the program that embeds this package
//
// # Key states
//
//	prepublished --activate--> active --rotate--> inactive --> rekeying --> deprecated --> removed
//
// A prepublished key is known to all and has sealed nothing. At most one key is active: it
// seals and signs, on the leader. Inactive and rekeying keys open what they sealed. A deprecated one
// opens nothing, unless it was adopted, but for [Keyring.DecryptDeprecated]: what is sealed under it is a
// copy, or forged. Unless they are revoked, the tokens of all three verify for TokenPolicy.MaxTTL and the leeway after they were retired. A
// removed key leaves a tombstone: its ID is never used again. A key never goes back. A rekeying key
// becomes deprecated, and may go, when a scan of the host's data has found nothing under it.
// Nothing is removed unless the operator or RotationPolicy.Retain asks; the one exception is a
// prepublished key of which every server has said that it has no material. The file of a removed
// key is kept aside for a while, so that a snapshot from before the removal brings the key back.
//
// # Invariants
//
//	I1   No material, wrapped or not, enters the raft log, a raft snapshot, a log line, an error,
//	     a metric or a temporary file that outlives the call.
//	I2   At most one key is active, on every server, at every index.
//	I3   A key becomes active only when a majority of the voters hold it, asked just before. The
//	     FSM refuses the command otherwise. An active key that came with a snapshot seals and signs only
//	     when a majority of the voters has said since, to this leader, that they hold it.
//	I4   Only the active key seals or signs, and only on a leader that has applied the barrier of its
//	     own term; before that it returns ErrNotReady. The ring that it goes by was read after that.
//	I5   What was sealed under a key opens on every holder until a scan has found nothing under it;
//	     for whoever asks DecryptDeprecated, for as long as that key is in the FSM.
//	     Without force, a key that a record in this raft is sealed under can't be removed, as long
//	     as [FSM.Admit] guards the host's Apply.
//	I6   A fetched or loaded key is used only if it matches the check value in the FSM.
//	I7   Apply is total and deterministic: no clock, no randomness, no map order, no I/O, no
//	     panic. The same log gives byte-equal snapshots on every server.
//	I8   A key file is only created, replaced whole by rename, set aside, or unlinked after its
//	     tombstone. What the ring says of a key has its file renamed or unlinked only on a server that
//	     has caught up with a leader since its start. A crash at any point, a full disk or a failed sync loses no key, and leaves
//	     nothing that stops a start.
//	I9   Live servers converge: every server that can reach one holder becomes one, no matter
//	     which other keys are lost or which peers are down. A key whose file is here under a
//	     KEK that does not answer, or of a newer build, waits for that instead.
//	I10  After Close no goroutine of the package runs, and the key bytes it owns are overwritten. If
//	     something hangs that pays no heed to its context, Close says so after a while, and no
//	     goroutine of the package runs when that has come back.
//	     Ciphers that crypto/aes has expanded are left to the collector, as are signing keys
//	     that crypto/rsa and crypto/ecdsa have.
//
// # How a key comes to be
//
// The leader makes it, writes its own file, offers it to the other servers and proposes add.
// Every server that lacks it fetches it, from the leader first, writes the file, reads it
// back and reports itself a holder. When the key is due, the leader asks live who holds it
// now, and proposes activate with the answers of a majority. The FSM refuses the command
// unless each of them is recorded as a holder with the keystore that answered: a wiped
// server has another keystore, and its old holds count no more.
//
// # The house
//
// Arrows run from the root down; a test enforces it.
//
//	keyring.go      Keyring: Open, Close, WaitReady, Encrypt, Keys
//	bell.go         how all who wait learn that something may have changed
//	opening.go      Decrypt, and the table in which it finds its key
//	config.go       Config and what zero means in it; KeyID, Key, State
//	errors.go       the errors that callers branch on
//	fsm.go          FSM, Load, the fence, and the one place that proposes to raft
//	firstkey.go     what comes before the first key: greeting, founding, adopting
//	builds.go       what the servers' builds apply; nothing else is proposed
//	mux.go          Mux: the keyring's FSM and the host's on one raft
//	keystore.go     the directory of key files: what lies in it, and what is done with it
//	holding.go      how a key comes to be held: written, read back, asked for live
//	material.go     the keys in memory
//	inspect.go      Inspect: what lies in a keystore directory, offline
//	kek.go          KEK, and the four that come with the library
//	rewrap.go       Rewrap: the key files moved to other KEKs
//	signing.go      Sign
//	verify.go       Verify, and the keys whose tokens verify
//	watch.go        what a leader sees of the other servers: who is silent, behind, or lacks the active key
//	publichalf.go   the public keys in raft, held against the material
//	wellknown.go    the JWKS, and the handler that serves it to relying parties
//	data.go         SealedData: where the host's records are; EncryptTo
//	rekey.go        the goroutine in which the leader moves data off keys that are rekeying
//	progress.go     how far a rekey is: for Status and metrics
//	removal.go      Remove, and how every server comes to unlink the file
//	tidy.go         what is said of the directory and has been put right by an operator
//	graves.go       what a keystore has of removed keys
//	nomad.go        the key files of HashiCorp Nomad, and OpenNomad
//	adopt.go        Adopt: keys whose files are there and whose metadata is not
//	backup.go       Backup, VerifyBackup
//	restore.go      Restore
//	noderestore.go  RestoreNode: a Node's directory from a backup
//	noderecover.go  RecoverNode: a cluster from what is left of one
//	othersilent.go  whether servers of a cluster answer that is to be made anew
//	transport.go    Transport, and calls of other servers
//	replication.go  the goroutine that brings this server what it lacks, and tells what it holds
//	fetching.go     how it gets keys from other servers
//	caughtup.go     whether this server knows what was committed before its start
//	serve.go        ServePeer: answers to the other servers
//	peerstate.go    what a server is and knows now, for the others
//	confirming.go   how a leader makes sure that it still is one
//	rotation.go     Rotate, CheckMembers, and how a key is made
//	metrics.go      Metrics, and the goroutine that gives it the figures
//	audit.go        Config.Audit and the goroutine that tells it
//	clocks.go       the clocks of the other servers, and times in the ring that lie ahead
//	leader.go       the goroutine in which the leader acts
//	status.go       Status, and what the parts say of which it is made
//	problems.go     Problems: their kinds, what to do about each, and how they follow from Status
//	statustext.go   Status for people
//	statuswire.go   the leader's Status for another server
//	node.go         Node: raft and bolt put together with the keyring
//	noderaft.go     what a Node's raft has on disk, and how it is configured
//	network.go      the calls at a Node's port
//	founding.go     how a Node's cluster is founded
//	joining.go      how a server joins one, and whom it takes for the cluster
//	admission.go    how the leader takes in a server that joins
//	members.go      members added, readmitted, removed, and given a vote
//	jointokens.go   tokens with which a server may join: made, listed, withdrawn, ended, accepted
//	nodemembers.go  AddServer, RemoveServer, Leave of a Node, and how it gives servers a vote
//	nodetokens.go   JoinToken, JoinTokens, WithdrawJoinToken of a Node
//	moved.go        how the leader learns the new address of a server
//	hosttls.go      ServerTLS, ClientTLS, PeerID: what a host with a raft of its own checks
//	forward.go      what a Node that follows has the leader do
//	nodestatus.go   Status of the leader, on every Node
//
//	gometrics         Config.Metrics for go-metrics
//
//	internal/meta     the pure state machine: ring, commands, codec of entries and snapshots, Check
//	internal/plan     pure decisions: what is missing, whom to ask, what the leader does next
//	internal/mono     moments by the monotonic clock, for all that is waited for in memory
//	internal/gate     how calls that may block end with their contexts, and what Close waits for
//	internal/nks      material, its check value, the .nks.json codec, the reader of Nomad's files
//	internal/kek      the KEKs that come with the library, and the KEKs of a keystore: wrap under all, unwrap with any
//	internal/seal     the ciphertext envelope
//	internal/jwt      tokens: what is written, and what is read, strictly
//	internal/join     join tokens: how both sides prove that they know one
//	internal/durable  the only code that writes files
//	internal/backup   archives: how a backup is written, read and checked
//	internal/peer     messages between servers, HPKE, mutual TLS, HTTP
//	internal/raftwire  raft's requests: large ones are split, and what others send is checked
//	internal/cluster  a Node's raft on disk, and its port
//	internal/strictjson JSON of others, walked through by hand: no member twice, no second spelling
//	internal/bounded  JSON of others, into types that say how much they may hold
//	internal/keyringtest  clusters and disks for tests, with faults; drills under strace
//
// Decide purely, then act: the goroutines of a Keyring ask internal/plan what to do and
// do it. meta and plan read no clock, no randomness and no I/O.
package keyring
