package keyring

// Members: added, readmitted, removed, promoted, demoted; how the leader hands over; and the tokens with which servers join. It is the public face of
// internal/members. The reasons to refuse a token are in plan.JoinRefusal; those that must also hold when raft applies its
// use are in internal/meta.

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

// AddServerOptions say how to add a server. The zero value asks nobody before a member gets another address.
type AddServerOptions struct {
	// MayMove is asked before a member gets another address, with the member as raft has it. An error refuses.
	// A member that still answers at its old address must not be moved: somebody has started a second server
	// with its certificate.
	MayMove func(ctx context.Context, member raft.Server) error
}

// AddVoter adds a server to the raft configuration, waits until it holds every key, and gives it a vote: AddServer and
// PromoteServer in one call. Start the server before, or while AddVoter waits, with a Transport. A member that votes already
// keeps its vote, and gets the new address. So it may be called again: after an error, a crash, or a change of leader.
//
// It ends with ctx, which should have a deadline. The error says what the server lacks, or that its keyring does not
// answer, as Status does meanwhile; the server stays a member without a vote. Of a permanent non-voter it changes the address
// alone, and returns an error: see PromoteServer. Leader only.
func (k *Keyring) AddVoter(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().AddVoter(ctx, id, addr, members.AddOptions(o)) })
}

// AddNonvoter adds a server to the raft configuration as a permanent non-voter, as for a read replica: it gets every key and
// every log entry, opens and verifies, and nobody gives it a vote but PromoteServer. That is recorded in the FSM, so it outlives
// restarts, changes of leader, and ReadmitServer; but a snapshot that raft restores has the records of its time: see
// Status.Nonvoters then. A member without a vote becomes a permanent non-voter. A voter is an error: see DemoteServer. It may be
// called again.
//
// While a server of the cluster does not answer, or runs a build without permanent non-voters, it is an error that names
// that server, and nothing has changed. Leader only.
func (k *Keyring) AddNonvoter(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().AddNonvoter(ctx, id, addr, members.AddOptions(o)) })
}

// AddServer adds a server to the raft configuration, without a vote, and does not wait: PromoteServer or PromoteServers gives
// it a vote later. A member gets the new address, and keeps its vote or stays without one. An ID of up to 255 bytes is taken as it is: case
// counts, and spaces around it are refused. It may be called again. Leader only.
func (k *Keyring) AddServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Add(ctx, id, addr, members.AddOptions(o)) })
}

// ReadmitServer makes a member that has lost its raft log a member that has no vote and holds no key. As a voter it
// would have forgotten its votes, and its recorded keys are gone. It gets the address, then every key, and a vote by
// PromoteServer. While a majority of the remaining voters does not hold every key, a voter is refused with an error that
// matches ErrNotDurable; and a server that is no member with one that matches ErrNotMember. It may be called again
// after a crash. Leader only.
//
// Call it only for that server itself, which its certificate proves, and only if nothing answers at the member's
// address any more: else somebody has started a second server with its certificate, which would take its place.
func (k *Keyring) ReadmitServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Readmit(ctx, id, addr) })
}

// RemoveServerOptions say how to remove a server. The zero value removes it only if no key is at risk.
type RemoveServerOptions struct {
	// Force removes it also if a key is then held by less than a majority of the voters that
	// remain, or nobody can say. It is for servers that will never come back. It can't help where
	// most of the remaining voters are down: see node.Recover and RecoverKeys.
	Force bool
}

// RemoveServer removes a server from the raft configuration, and forgets which keystore it had. Unless
// RemoveServerOptions.Force is set, a majority of the voters that remain must say, now, that it holds each key; else
// the error matches ErrNotDurable. All join tokens end before. A server that is no member is an error that matches
// ErrNotMember and names the members.
//
// A leader that is to remove itself hands over and returns an error that matches ErrNotLeader: the next leader is to
// be asked. Leader only.
func (k *Keyring) RemoveServer(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Remove(ctx, id, members.RemoveOptions(o)) })
}

// PromoteServer gives a member that has no vote one, once it holds every key that something may be sealed under: it
// must be recorded as a holder of each, and say so now, and a majority of the voters with it must hold each key. Until
// then Status names the server and what it waits for. While it is not recorded as a holder, the error matches
// ErrKeyMissing, and there is no use in asking again before Changed tells of a change. A voter keeps its vote. A permanent
// non-voter is none any more once it votes; after an error it still is. Leader only.
func (k *Keyring) PromoteServer(ctx context.Context, id raft.ServerID) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Promote(ctx, id) })
}

// PromoteServers does what PromoteServer does for every member without a vote, but for permanent non-voters. A host in which
// servers join by themselves calls it whenever Changed tells of a change, and again after an error. That a server does not
// hold every key yet is no error. Status and the log say why a server has no vote yet. Leader only.
func (k *Keyring) PromoteServers(ctx context.Context) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().PromoteAll(ctx) })
}

// DemoteServer takes a voter's vote: it stays a member, keeps its keys, and is a permanent non-voter until PromoteServer is
// called for it. It is refused while a majority of the other voters does not say, now, that it holds each key, with an error
// that matches ErrNotDurable; and for the last voter. A member without a vote becomes a permanent non-voter. It may be called
// again. What is said of builds and of servers that do not answer at AddNonvoter holds here too: to do without a server that
// will not come back, call RemoveServer.
//
// A leader that is to demote itself hands over and returns an error that matches ErrNotLeader: the next leader is to be
// asked. Leader only.
func (k *Keyring) DemoteServer(ctx context.Context, id raft.ServerID) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Demote(ctx, id) })
}

// Leave removes this server from the cluster, as RemoveServer does: for a server that is shut down for good. It may be called on
// any server, needs no forwarding of the host's, and may be called again. A follower asks the leader, over the Transport, and
// the leader removes none but the server that the Transport has authenticated; a leader hands over first, and asks the next one. It
// returns nil too if this server was removed before. Afterwards close the keyring and delete its directory: until then it keeps
// the keys that it has.
//
// It is refused while a majority of the voters that remain does not say that it holds each key, with an error that matches
// ErrNotDurable; and for the last voter. Until ctx ends it waits for a leader that is ready and answers. If the leader runs a
// build that does not know the question, it is an error: call RemoveServer there.
func (k *Keyring) Leave(ctx context.Context) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Leave(ctx) })
}

// TransferLeadership hands over to another voter, the one whose log is the furthest: before work on the leader's
// machine, say, or before the leader's process ends. When it returns without an error, this server leads no longer, and the other one is
// being elected, which takes some milliseconds. It is an error if there is no other voter, or if none takes over within a few
// seconds; then this server goes on. Leader only: on another server the error is a NotLeaderError, with the leader.
func (k *Keyring) TransferLeadership(ctx context.Context) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Transfer(ctx, "") })
}

// TransferLeadershipTo is TransferLeadership to the voter of that ID. It returns nil if that is this server, and it leads.
// If no member has that ID, the error matches ErrNotMember. Leader only.
func (k *Keyring) TransferLeadershipTo(ctx context.Context, id raft.ServerID) error {
	return k.doLed(ctx, func(ctx context.Context) error {
		if id == "" {
			return errors.New("transfer leadership: the server ID is empty")
		}
		return k.members().Transfer(ctx, id)
	})
}

// MembershipVersion grows with each raft configuration that the FSM is told of and each snapshot that is restored. A
// host that closes the connections of removed servers compares it: between two looks at raft's configuration a server
// may have come and gone.
func (k *Keyring) MembershipVersion() uint64 {
	return k.server.FSM.Configurations() + k.server.FSM.Restores()
}

// WithForwarder says that a server asks, by its certificate, for what is called with the context: a host that forwards
// calls to the leader sets it there. If that server was removed while its call waited, the call is refused with an
// error that matches ErrNotMember. It changes nothing for calls that change no member and no join token.
func WithForwarder(ctx context.Context, server raft.ServerID) context.Context {
	return local.WithForwarder(ctx, server)
}

// CheckMembers reports whether the raft configuration can be changed to these voters
// without risk to a key: each key that something may be sealed under must be held, asked
// live, by a majority of them. The error names the keys for which it is not so; a voter that is named twice is one too. A host that
// changes its configuration by itself calls it before each change, and makes no two changes
// at a time. Leader only.
func (k *Keyring) CheckMembers(ctx context.Context, voters []raft.ServerID) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().Check(ctx, voters) })
}

// Bounds on join tokens.
const (
	defaultJoinTTL = time.Hour
	// MaxJoinTTL is how long a join token is good at most.
	MaxJoinTTL = 24 * time.Hour
	// MaxJoinTokens is how many there are at a time.
	MaxJoinTokens = meta.MaxJoinTokens
)

// ErrJoinRefused means that a server may not join with its token. The rest of the error is for the leader's log: the
// server must learn no more than that it is no member.
var ErrJoinRefused = join.ErrRefused

// JoinTokenInfo is a join token that has not ended, without its secret.
type JoinTokenInfo struct {
	ID     string        `json:"id"`     // 32 hexadecimal digits; no secret
	Server raft.ServerID `json:"server"` // that may join with it
	End    time.Time     `json:"end"`
	Used   bool          `json:"used"` // a certificate of that server has joined with it, and no other can
}

// MakeJoinToken makes a token with which the server of that ID may join this cluster: it proves the server to the
// cluster and the cluster to the server, over one TLS connection, as JoinConn says. It is a secret. It is good for
// ttl, zero means an hour, at most MaxJoinTTL; for that server alone; and for the first certificate of it that joins,
// which may do so again. It ends before when any server is removed, with a full rotation or one that revokes a key,
// when the data under the key that was active as it was made is moved, when raft restores a snapshot, for a leader
// that has it from a snapshot alone, as after a restart, and by WithdrawJoinToken. There are MaxJoinTokens at most.
//
// While a server of the cluster does not answer, or runs a build without such tokens, it is an error that names that
// server; if none has answered otherwise, it matches ErrNotReady. Leader only.
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

// JoinTokens returns the join tokens that have not ended, as this server knows them, which may be behind the leader, and by its
// clock. One that
// raft has restored from a snapshot is among them until the leader ends it, though nobody can join with it
// where the leader has it from a snapshot alone too.
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

// WithdrawJoinToken ends the join token of that ID, which is JoinTokenInfo's: nobody can join with it any
// more. A server that has joined stays: see RemoveServer. That there is no such token is an error. Leader only.
func (k *Keyring) WithdrawJoinToken(ctx context.Context, id string) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().WithdrawToken(ctx, id) })
}

// JoinConn is the TLS connection over which a server joins with a token, as both of its ends see it. First the server
// tells the leader the token's ID; the leader answers with LeaderProof, and the server believes nothing before
// CheckLeader has taken that. Then it sends JoinerProof, and the leader calls AcceptJoin. A proof is worth nothing on
// another connection, or between other servers.
type JoinConn struct {
	Exporter             []byte // tls-exporter of RFC 9266: 32 bytes of EXPORTER-Channel-Binding without a context
	Cluster              string // the cluster's name in the certificates
	Leader, Joiner       raft.ServerID
	LeaderKey, JoinerKey []byte             // DER SubjectPublicKeyInfo of the certificates that were shown
	Addr                 raft.ServerAddress // where the server that joins is to be reached
}

func (c JoinConn) meeting() join.Meeting {
	return join.Meeting{
		Exporter: c.Exporter, Cluster: c.Cluster, Leader: string(c.Leader), LeaderKey: c.LeaderKey,
		Joiner: string(c.Joiner), JoinerKey: c.JoinerKey, Addr: string(c.Addr),
	}
}

// JoinTokenID returns the ID of a token, which is no secret, or says what is wrong with the token.
func JoinTokenID(token string) (string, error) {
	t, err := join.Parse(token)
	if err != nil {
		return "", err
	}
	defer t.Wipe()
	return meta.TokenID(t.ID).String(), nil
}

// JoinerProof is what the server that joins sends, to prove that it has the token.
func (c JoinConn) JoinerProof(token string) ([]byte, error) {
	t, err := join.Parse(token)
	if err != nil {
		return nil, err
	}
	defer t.Wipe()
	return c.meeting().JoinerProof(t)
}

// CheckLeader is an error unless a proof is the LeaderProof for the token and this connection.
func (c JoinConn) CheckLeader(token string, proof []byte) error {
	t, err := join.Parse(token)
	if err != nil {
		return err
	}
	defer t.Wipe()
	return c.meeting().CheckLeader(t, proof)
}

// LeaderProof is what the leader sends to a server that has told the ID of its token: it proves that this is the
// leader of the cluster that made it. Errors that match ErrJoinRefused are for the leader's log. Leader only.
func (k *Keyring) LeaderProof(c JoinConn, token string) ([]byte, error) {
	return k.members().LeaderProof(c.meeting(), token)
}

// AcceptJoin adds the server at the other end of the connection, without a vote, if its proof is the JoinerProof for
// the token of that ID. From then on the token is good for this certificate alone. A server that is a member by then
// is readmitted: see ReadmitServer, and when not to call that. Errors that match ErrJoinRefused are for the leader's log. Leader only.
func (k *Keyring) AcceptJoin(ctx context.Context, c JoinConn, token string, proof []byte) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.members().AcceptJoin(ctx, c.meeting(), token, proof) })
}
