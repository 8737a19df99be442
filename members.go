package keyring

// The members of the cluster, leadership transfer, and join tokens: the public face of internal/members. The
// reasons to reject a token are in plan.JoinRefusal; those that must also hold when raft applies its use are
// in internal/meta.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/join"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/members"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

func (k *Keyring) members() members.Members {
	return members.Members{Server: k.server.Server, Leader: k.leader}
}

// AddServerOptions says how to add a server. The zero value asks nobody before it changes a member's address.
type AddServerOptions struct {
	// MayMove is called before the address of a member changes, with the member as raft knows it. Its error
	// rejects the change. Reject it if the member still answers at its old address: then somebody has started
	// a second server with its certificate.
	MayMove func(ctx context.Context, member raft.Server) error
}

// AddVoter adds a server to the raft configuration, waits until it holds every key, and gives it a vote: it
// is AddServer and PromoteServer in one call. Start the server before, or while AddVoter waits, with a
// Transport. A voter keeps its vote and gets the new address. So you can repeat the call after an error, a
// crash, or a change of leader.
//
// Give ctx a deadline. If ctx ends first, the server stays a member without a vote. The error says what the
// server lacks, or that its keyring does not answer; meanwhile Status says so too. For a permanent non-voter,
// AddVoter only changes the address, and returns an error: see PromoteServer. Leader only.
func (k *Keyring) AddVoter(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().AddVoter(ctx, id, addr, members.AddOptions(o)) })
}

// AddNonvoter adds a server to the raft configuration as a permanent non-voter, such as a read replica. It
// gets every key and every log entry, decrypts and verifies. Only PromoteServer gives it a vote. A member
// without a vote becomes a permanent non-voter. A voter is an error: see DemoteServer. The call may be
// repeated.
//
// The FSM records the permanent non-voters, so they stay so after restarts, changes of leader, and
// ReadmitServer. But a snapshot that raft restores brings back the records of its time: check
// Status.Nonvoters then.
//
// If a server of the cluster does not answer, or runs a build without permanent non-voters, the error names
// that server, and nothing has changed. Leader only.
func (k *Keyring) AddNonvoter(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().AddNonvoter(ctx, id, addr, members.AddOptions(o)) })
}

// AddServer adds a server to the raft configuration without a vote, and does not wait: PromoteServer or
// PromoteServers gives it a vote later. A member gets the new address, and keeps its vote if it has one. The
// ID has at most 255 bytes, is case-sensitive, and must not begin or end with spaces. The call may be
// repeated. Leader only.
func (k *Keyring) AddServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Add(ctx, id, addr, members.AddOptions(o)) })
}

// ReadmitServer readmits a member that has lost its raft log: it becomes a member without a vote and without
// keys. As a voter it could vote twice in a term, because it has forgotten its votes; and its recorded keys
// are gone. It gets the address, then every key, and a vote from PromoteServer. A voter is not readmitted
// while a majority of the remaining voters lacks a key; then the error matches ErrNotDurable. For a server
// that is no member the error matches ErrNotMember. The call may be repeated after a crash. Leader only.
//
// Call it only if the server's certificate proves that it is this member, and if nothing answers at the
// member's old address. Otherwise somebody has started a second server with its certificate, which would take
// its place.
func (k *Keyring) ReadmitServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Readmit(ctx, id, addr) })
}

// RemoveServerOptions says how to remove a server. The zero value removes it only if no key is at risk.
type RemoveServerOptions struct {
	// Force removes the server even if fewer than a majority of the remaining voters confirm that they hold
	// each key. It is for servers that will never come back. It does not help if most of the remaining voters
	// are down: see node.Recover and RecoverKeys.
	Force bool
}

// RemoveServer removes a server from the raft configuration and forgets its keystore. Unless
// RemoveServerOptions.Force is set, a majority of the remaining voters must confirm now that it holds each
// key; otherwise the error matches ErrNotDurable. All join tokens end first. For a server that is no member
// the error matches ErrNotMember and names the members.
//
// A leader that is asked to remove itself transfers its leadership and returns an error that matches
// ErrNotLeader. Then ask the next leader. Leader only.
func (k *Keyring) RemoveServer(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Remove(ctx, id, members.RemoveOptions(o)) })
}

// PromoteServer gives a vote to a member without one, once it holds every key that may have encrypted data.
// It must be recorded as a holder of each such key and confirm that now; and, counting it, a majority of the
// voters must hold each. Until then Status names the server and what it waits for. While it is not recorded
// as a holder, the error matches ErrKeyMissing; do not retry before Changed reports a change. A voter keeps
// its vote. A permanent non-voter stops being one when it gets its vote; after an error it still is one.
// Leader only.
func (k *Keyring) PromoteServer(ctx context.Context, id raft.ServerID) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Promote(ctx, id) })
}

// PromoteServers calls PromoteServer for every member without a vote that is no permanent non-voter. A host
// whose servers join by themselves calls it whenever Changed reports a change, and again after an error. A
// server that does not hold every key yet is no error. Status and the log say why a server has no vote yet.
// Leader only.
func (k *Keyring) PromoteServers(ctx context.Context) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().PromoteAll(ctx) })
}

// DemoteServer takes a voter's vote away. The server stays a member and keeps its keys, and is a permanent
// non-voter until PromoteServer is called for it. A member without a vote becomes a permanent non-voter. The
// call may be repeated.
//
// It fails for the last voter. It also fails if no majority of the other voters confirms now that it holds
// each key; then the error matches ErrNotDurable. As with AddNonvoter, it fails while a server does not
// answer or runs a build without permanent non-voters. To do without a server that will not come back, call
// RemoveServer.
//
// A leader that is asked to demote itself transfers its leadership and returns an error that matches
// ErrNotLeader. Then ask the next leader. Leader only.
func (k *Keyring) DemoteServer(ctx context.Context, id raft.ServerID) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Demote(ctx, id) })
}

// Leave removes this server from the cluster, as RemoveServer does, before it is shut down for good. It may
// be called on any server, needs no forwarding by the host, and may be repeated. A follower asks the leader
// over the Transport, and the leader removes only the server that the Transport has authenticated. A leader
// transfers its leadership first, and asks the next leader. If this server was removed before, Leave returns
// nil. Afterwards close the keyring and delete its directory: until then the directory still contains the
// keys.
//
// Leave fails for the last voter. It also fails if no majority of the remaining voters confirms that it holds
// each key; then the error matches ErrNotDurable. Until ctx ends it waits for a leader that is ready and
// answers. It fails if the leader runs a build without Leave: call RemoveServer on that leader.
func (k *Keyring) Leave(ctx context.Context) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Leave(ctx) })
}

// TransferLeadership transfers the leadership to the voter with the longest log, for example before work on
// the leader's machine or before the leader's process ends. When it has returned nil, this server no longer
// leads, and the other one is being elected, which takes some milliseconds. It is an error if there is no
// other voter, or if none takes over within a few seconds; then this server goes on leading. Leader only: on
// another server the error is a NotLeaderError with the leader.
func (k *Keyring) TransferLeadership(ctx context.Context) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Transfer(ctx, "") })
}

// TransferLeadershipTo is TransferLeadership to the voter with that ID. It returns nil if that is this
// server, and it leads. If no member has that ID, the error matches ErrNotMember. Leader only.
func (k *Keyring) TransferLeadershipTo(ctx context.Context, id raft.ServerID) error {
	return k.doLed(ctx, func(ctx context.Context) error {
		if id == "" {
			return errors.New("transfer leadership: the server ID is empty")
		}
		return k.members().Transfer(ctx, id)
	})
}

// MembershipVersion grows with each raft configuration and each restored snapshot that the FSM receives. A
// host that closes the connections of removed servers compares it: a server may have been removed and added
// again between two reads of raft's configuration.
func (k *Keyring) MembershipVersion() uint64 {
	return k.server.FSM.Configurations() + k.server.FSM.Restores()
}

// WithForwarder says that the server with this ID, proven by its certificate, asks for the calls made with
// the context. A host that forwards calls to the leader sets it there. If that server is removed while its
// call waits, the call fails with an error that matches ErrNotMember. It affects only calls that change
// members or join tokens.
func WithForwarder(ctx context.Context, server raft.ServerID) context.Context {
	return local.WithForwarder(ctx, server)
}

// CheckMembers reports whether these voters can become the raft configuration without risk to a key: a
// majority of them must confirm now that it holds each key that may have encrypted data. The error names the
// keys that fail. A voter that is listed twice is an error too. A host that changes its configuration by
// itself calls CheckMembers before each change, and makes one change at a time. Leader only.
func (k *Keyring) CheckMembers(ctx context.Context, voters []raft.ServerID) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Check(ctx, voters) })
}

// Bounds on join tokens.
const (
	defaultJoinTTL = time.Hour
	// MaxJoinTTL is the longest life of a join token.
	MaxJoinTTL = 24 * time.Hour
	// MaxJoinTokens is how many join tokens there can be at a time.
	MaxJoinTokens = 64
)

// ErrJoinRefused means that a server may not join with its token. Write the rest of the error to the leader's
// log only: the server must learn nothing but that it is no member.
var ErrJoinRefused = join.ErrRefused

// JoinTokenInfo describes a join token that has not ended, without its secret.
type JoinTokenInfo struct {
	ID     string        `json:"id"`     // 32 hexadecimal digits; no secret
	Server raft.ServerID `json:"server"` // the server that may join with it
	End    time.Time     `json:"end"`
	Used   bool          `json:"used"` // the server has joined with it; it is now bound to that certificate
}

// MakeJoinToken makes a secret token with which the server of that ID may join this cluster. Over one TLS
// connection, described at JoinConn, it proves the server to the cluster and the cluster to the server. It
// works for that server alone, and for the first of its certificates that joins; that one may join again. It
// ends after ttl. Zero means an hour; the maximum is MaxJoinTTL. It ends earlier
//
//   - when any server is removed;
//   - with a full rotation, or a rotation that revokes a key;
//   - when the data under the key that was active when it was made has been re-encrypted;
//   - when raft restores a snapshot, for a leader that knows the token only from a snapshot, such as after a
//     restart;
//   - with WithdrawJoinToken.
//
// There can be MaxJoinTokens at a time. If a server of the cluster does not answer, or runs a build without
// join tokens, the error names that server. It matches ErrNotReady if servers merely did not answer. Leader
// only.
func (k *Keyring) MakeJoinToken(ctx context.Context, id raft.ServerID, ttl time.Duration) (string, error) {
	if err := k.server.Gate.Err(); err != nil {
		return "", err
	}
	if err := peer.CheckServerID(string(id)); err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	if ttl == 0 {
		ttl = defaultJoinTTL
	}
	if ttl < 0 || ttl > MaxJoinTTL {
		return "", fmt.Errorf("join token for server %s: for %v, want at most %v", id, ttl, MaxJoinTTL)
	}
	text, err := led(ctx, k, func(ctx context.Context) (string, error) { return k.members().MakeToken(ctx, id, ttl) })
	if err != nil && !errors.Is(err, ErrNotLeader) {
		return "", fmt.Errorf("join token for server %s: %w", id, err)
	}
	return text, err
}

// JoinTokens returns the join tokens that have not ended, as far as this server knows and by its clock. It
// may be behind the leader. A token from a restored snapshot is included until the leader ends it. Nobody can
// join with it if the leader too knows it only from a snapshot.
func (k *Keyring) JoinTokens() []JoinTokenInfo {
	return liveTokens(k.server.FSM.Ring(), k.server.Now())
}

func liveTokens(ring *meta.Ring, now time.Time) (all []JoinTokenInfo) {
	for _, t := range ring.JoinTokens {
		if !now.Before(t.End) {
			continue
		}
		all = append(all, JoinTokenInfo{t.ID.String(), raft.ServerID(t.Server), t.End, t.User != meta.Digest{}})
	}
	return all
}

// WithdrawJoinToken ends the join token with that JoinTokenInfo.ID, so nobody can join with it any longer. A
// server that has joined stays: see RemoveServer. An unknown ID is an error. Leader only.
func (k *Keyring) WithdrawJoinToken(ctx context.Context, id string) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().WithdrawToken(ctx, id) })
}

// JoinConn is the TLS connection over which a server joins with a token, as both ends see it. First the
// server sends the ID of the token. The leader answers with LeaderProof, and the server trusts nothing before
// CheckLeader has accepted that. Then the server sends JoinerProof, and the leader calls AcceptJoin. A proof
// is worthless on another connection, or between other servers.
type JoinConn struct {
	Exporter             []byte // tls-exporter of RFC 9266: 32 bytes of EXPORTER-Channel-Binding without a context
	Cluster              string // the cluster's name in the certificates
	Leader, Joiner       raft.ServerID
	LeaderKey, JoinerKey []byte             // DER SubjectPublicKeyInfo of the certificates on the connection
	Addr                 raft.ServerAddress // the address of the server that joins
}

func (c JoinConn) meeting() join.Meeting {
	return join.Meeting{
		Exporter: c.Exporter, Cluster: c.Cluster, Leader: string(c.Leader), LeaderKey: c.LeaderKey,
		Joiner: string(c.Joiner), JoinerKey: c.JoinerKey, Addr: string(c.Addr),
	}
}

// JoinTokenID returns the ID of a token, which is no secret. Its error says what is wrong with the token.
func JoinTokenID(token string) (string, error) {
	t, err := join.Parse(token)
	if err != nil {
		return "", err
	}
	defer t.Wipe()
	return meta.TokenID(t.ID).String(), nil
}

// JoinerProof returns what the server that joins sends to prove that it has the token.
func (c JoinConn) JoinerProof(token string) ([]byte, error) {
	t, err := join.Parse(token)
	if err != nil {
		return nil, err
	}
	defer t.Wipe()
	return c.meeting().JoinerProof(t)
}

// CheckLeader returns nil if proof is the LeaderProof for the token and this connection.
func (c JoinConn) CheckLeader(token string, proof []byte) error {
	t, err := join.Parse(token)
	if err != nil {
		return err
	}
	defer t.Wipe()
	return c.meeting().CheckLeader(t, proof)
}

// LeaderProof returns the leader's answer to a server that has sent the ID of its token. It proves that this
// is the leader of the cluster that made the token. Write errors that match ErrJoinRefused to the leader's
// log. Leader only.
func (k *Keyring) LeaderProof(c JoinConn, token string) ([]byte, error) {
	return k.members().LeaderProof(c.meeting(), token)
}

// AcceptJoin adds the server at the other end of the connection, without a vote, if proof is its JoinerProof
// for the token with that ID. From then on the token works for this certificate alone. A server that is a
// member already is readmitted: see ReadmitServer, also for when not to call it. Write errors that match
// ErrJoinRefused to the leader's log. Leader only.
func (k *Keyring) AcceptJoin(ctx context.Context, c JoinConn, token string, proof []byte) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().AcceptJoin(ctx, c.meeting(), token, proof) })
}
