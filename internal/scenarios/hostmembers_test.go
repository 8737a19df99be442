package scenarios_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// memberOf returns a server as raft's latest configuration has it, on that one.
func memberOf(s *keyringtest.Server, id raft.ServerID) (raft.Server, bool) {
	for _, m := range s.Raft.GetConfiguration().Configuration().Servers {
		if m.ID == id {
			return m, true
		}
	}
	return raft.Server{}, false
}

// promoted calls PromoteServer, as a host does, until it succeeds.
func promoted(ctx context.Context, t *testing.T, leader *keyringtest.Server, id raft.ServerID) {
	t.Helper()
	for {
		changed := leader.Keyring.Changed()
		err := leader.Keyring.PromoteServer(ctx, id)
		if err == nil {
			return
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		case <-ctx.Done():
			t.Fatalf("%s gets no vote: %v", id, err)
		}
	}
}

// TestAddedServerGetsItsVoteWithTheKeys: a host adds a server, which has no vote before it holds every key, and Status
// says what it waits for.
func TestAddedServerGetsItsVoteWithTheKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		heal := keyringtest.Refuse(c, "fetch")
		c.StartFresh("s4")
		version := leader.Keyring.MembershipVersion()
		if err := leader.Keyring.AddServer(t.Context(), "s4", "s4", keyring.AddServerOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // virtual
		if leader.Keyring.MembershipVersion() == version {
			t.Error("the leader's version of the membership is the same after a server was added")
		}
		if err := leader.Keyring.PromoteServer(t.Context(), "s4"); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("promoted without a key: %v", err)
		}
		if p := keyringtest.Problems(t, leader, keyring.ProblemNonvoter); len(p) != 1 || p[0].Server != "s4" || !strings.Contains(p[0].Detail, "lacks 1 key") {
			t.Errorf("the leader says of s4: %v", p)
		}
		if p := keyringtest.Problems(t, keyringtest.Follower(c), keyring.ProblemNonvoter); len(p) > 0 {
			t.Errorf("a follower says of s4: %v", p)
		}
		if m, _ := memberOf(leader, "s4"); m.Suffrage != raft.Nonvoter {
			t.Errorf("s4 is %v", m)
		}
		heal()
		promoted(t.Context(), t, leader, "s4")
		if m, _ := memberOf(leader, "s4"); m.Suffrage != raft.Voter {
			t.Errorf("s4 is %v", m)
		}
		if p := keyringtest.Problems(t, leader, keyring.ProblemNonvoter); len(p) > 0 {
			t.Errorf("the leader says of a voter: %v", p)
		}
	})
}

// TestPromotionAsksLive: a record that a server holds every key is not enough.
func TestPromotionAsksLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		fresh := c.StartFresh("s4")
		if err := leader.Keyring.AddServer(t.Context(), "s4", "s4", keyring.AddServerOptions{}); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 4) // the record
		c.Stop(fresh)
		if err := leader.Keyring.PromoteServer(t.Context(), "s4"); err == nil || errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("promoted a server that does not answer: %v", err)
		}
		if p := keyringtest.Problems(t, leader, keyring.ProblemNonvoter); len(p) != 1 || !strings.Contains(p[0].Detail, "does not answer") {
			t.Errorf("the leader says of s4: %v", p)
		}
		c.Start(fresh)
		promoted(t.Context(), t, leader, "s4")
	})
}

// TestMemberMovesIfTheHostAllowsIt, and keeps its vote.
func TestMemberMovesIfTheHostAllowsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		id := keyringtest.Follower(c).ID
		errThere := errors.New("it answers at its old address")
		var asked []raft.Server
		o := keyring.AddServerOptions{MayMove: func(_ context.Context, m raft.Server) error {
			asked = append(asked, m)
			return errThere
		}}
		if err := leader.Keyring.AddServer(t.Context(), id, raft.ServerAddress(id), o); err != nil || len(asked) > 0 {
			t.Errorf("the address that it has: %v, asked %v", err, asked)
		}
		if err := leader.Keyring.AddServer(t.Context(), id, "elsewhere", o); !errors.Is(err, errThere) || len(asked) != 1 || asked[0].Address != raft.ServerAddress(id) {
			t.Errorf("moved: %v, asked %v", err, asked)
		}
		if err := leader.Keyring.AddServer(t.Context(), id, "elsewhere", keyring.AddServerOptions{}); err != nil {
			t.Fatal(err)
		}
		if m, _ := memberOf(leader, id); m.Address != "elsewhere" || m.Suffrage != raft.Voter {
			t.Errorf("moved, it is %v", m)
		}
		if err := leader.Keyring.AddServer(t.Context(), " s9", "s9", keyring.AddServerOptions{}); err == nil {
			t.Error("an ID that begins with a space was added")
		}
	})
}

// TestRemovedServerIsForgotten, with its keystore and all join tokens; and what takes keys from a majority is refused.
func TestRemovedServerIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		var others []*keyringtest.Server
		for _, s := range c.Servers {
			if s != leader {
				others = append(others, s)
			}
		}
		gone, stays := others[0], others[1]
		if _, err := leader.Keyring.MakeJoinToken(t.Context(), "s9", 0); err != nil {
			t.Fatal(err)
		}
		heal := keyringtest.Refuse(c, "ask")
		err := leader.Keyring.RemoveServer(t.Context(), gone.ID, keyring.RemoveServerOptions{})
		if !errors.Is(err, keyring.ErrNotDurable) {
			t.Errorf("removed while %s does not say what it holds: %v", stays.ID, err)
		}
		if _, still := memberOf(leader, gone.ID); !still || len(leader.Keyring.JoinTokens()) != 1 {
			t.Error("a refused removal has changed something")
		}
		heal()
		if err := leader.Keyring.RemoveServer(t.Context(), gone.ID, keyring.RemoveServerOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, still := memberOf(leader, gone.ID); still || len(leader.Keyring.JoinTokens()) > 0 {
			t.Errorf("after the removal: member %v, tokens %v", still, leader.Keyring.JoinTokens())
		}
		if _, known := keyringtest.Ring(leader.FSM).Keystore(string(gone.ID)); known {
			t.Error("its keystore is recorded")
		}
		err = leader.Keyring.RemoveServer(t.Context(), gone.ID, keyring.RemoveServerOptions{})
		if !errors.Is(err, keyring.ErrNotMember) || !strings.Contains(err.Error(), string(stays.ID)) {
			t.Errorf("removed twice: %v", err)
		}
		if err := leader.Keyring.RemoveServer(t.Context(), leader.ID, keyring.RemoveServerOptions{}); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("a leader that is to remove itself: %v", err)
		}
		next := c.Leader()
		if next == leader {
			t.Fatal("it has not handed over")
		}
		keyringtest.Ready(t, c)
		if err := next.Keyring.RemoveServer(t.Context(), leader.ID, keyring.RemoveServerOptions{}); err != nil {
			t.Errorf("the next leader: %v", err)
		}
	})
}

// TestReadmittedServerHoldsNothing: one that has lost its raft log has no vote, and none of what is recorded of it.
func TestReadmittedServerHoldsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		wiped := keyringtest.Follower(c)
		c.Stop(wiped)
		if err := leader.Keyring.ReadmitServer(t.Context(), "s9", "s9"); !errors.Is(err, keyring.ErrNotMember) {
			t.Errorf("a server that is no member: %v", err)
		}
		if err := leader.Keyring.ReadmitServer(t.Context(), wiped.ID, raft.ServerAddress(wiped.ID)); err != nil {
			t.Fatal(err)
		}
		if m, _ := memberOf(leader, wiped.ID); m.Suffrage != raft.Nonvoter {
			t.Errorf("it is %v", m)
		}
		for _, key := range leader.Keyring.Keys() {
			if slices.Contains(key.Holders, wiped.ID) {
				t.Errorf("it is a holder of %s", key.ID)
			}
		}
		c.Wipe(wiped)
		promoted(t.Context(), t, leader, wiped.ID)
	})
}

// TestMembersAreTheLeadersAlone to change, but what is asked of any server.
func TestMembersAreTheLeadersAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		f, ctx := keyringtest.Follower(c), t.Context()
		if err := leader.Keyring.Leading(); err != nil {
			t.Errorf("the leader does not lead: %v", err)
		}
		for name, call := range map[string]func(*keyring.Keyring) error{
			"Leading":       (*keyring.Keyring).Leading,
			"AddServer":     func(k *keyring.Keyring) error { return k.AddServer(ctx, "s9", "s9", keyring.AddServerOptions{}) },
			"RemoveServer":  func(k *keyring.Keyring) error { return k.RemoveServer(ctx, "s1", keyring.RemoveServerOptions{}) },
			"ReadmitServer": func(k *keyring.Keyring) error { return k.ReadmitServer(ctx, "s1", "s1") },
			"PromoteServer": func(k *keyring.Keyring) error { return k.PromoteServer(ctx, "s1") },
			"DemoteServer":  func(k *keyring.Keyring) error { return k.DemoteServer(ctx, "s1") },
			"AddVoter":      func(k *keyring.Keyring) error { return k.AddVoter(ctx, "s9", "s9", keyring.AddServerOptions{}) },
			"AddNonvoter": func(k *keyring.Keyring) error {
				return k.AddNonvoter(ctx, "s9", "s9", keyring.AddServerOptions{})
			},
			"PromoteServers": func(k *keyring.Keyring) error { return k.PromoteServers(ctx) },
			"MakeJoinToken":  func(k *keyring.Keyring) error { _, err := k.MakeJoinToken(ctx, "s9", 0); return err },
			"WithdrawJoinToken": func(k *keyring.Keyring) error {
				return k.WithdrawJoinToken(ctx, strings.Repeat("0", 32))
			},
			"LeaderProof":  func(k *keyring.Keyring) error { _, err := k.LeaderProof(keyring.JoinConn{}, ""); return err },
			"AcceptJoin":   func(k *keyring.Keyring) error { return k.AcceptJoin(ctx, keyring.JoinConn{}, "", nil) },
			"EncodeStatus": func(k *keyring.Keyring) error { _, err := k.EncodeStatus(); return err },
			"StartRemoval": func(k *keyring.Keyring) error {
				_, err := k.StartRemoval(ctx, keyring.KeyID{1}, keyring.RemoveOptions{})
				return err
			},
		} {
			if err := call(f.Keyring); !errors.Is(err, keyring.ErrNotLeader) {
				t.Errorf("%s on a follower: %v", name, err)
			}
		}
		keys := f.Keyring
		c.Stop(f)
		if err := keys.AddServer(ctx, "s9", "s9", keyring.AddServerOptions{}); !errors.Is(err, keyring.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestFollowersWaitForWhatTheLeaderDoes: for a rotation, and for a removal that was begun and not waited for.
func TestFollowersWaitForWhatTheLeaderDoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Data = keyring.NoData{}
		}})
		leader := keyringtest.Ready(t, c)
		f := keyringtest.Follower(c)
		first, err := f.Keyring.ActiveKey()
		if err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(time.Hour)
		for _, o := range []keyring.RotateOptions{{Publish: later}, {}} {
			made, err := leader.Keyring.Rotate(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := f.Keyring.WaitRotated(t.Context(), made.ID)
			if err != nil || got.ID != made.ID || got.State != made.State {
				t.Errorf("%+v: the follower waits for %s %s: %v; the leader has made it %s", o, got.ID, got.State, err, made.State)
			}
		}
		if _, err := leader.Keyring.StartRemoval(t.Context(), first.ID, keyring.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := f.Keyring.WaitRemoved(t.Context(), first.ID); err != nil {
			t.Errorf("the follower waits for the removal: %v", err)
		}
		if slices.ContainsFunc(f.Keyring.Keys(), func(k keyring.Key) bool { return k.ID == first.ID }) {
			t.Error("the removed key is there")
		}
	})
}

// TestFollowerShowsTheLeadersStatus, with the keys as it has them itself.
func TestFollowerShowsTheLeadersStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		b, err := leader.Keyring.EncodeStatus()
		if err != nil {
			t.Fatal(err)
		}
		f := keyringtest.Follower(c)
		keyringtest.AwaitHolders(f.Keyring, leader.Keyring.Keys()[0].ID, 3) // the keys are as the follower has them
		st, err := f.Keyring.DecodeStatus(b)
		if err != nil || st.ID != leader.ID || len(st.Keys) != 1 || len(st.Keys[0].Holders) != 3 || len(st.NoBackup) != 1 {
			t.Errorf("%+v, %v", st, err)
		}
		if _, err := f.Keyring.DecodeStatus(b[:len(b)-1]); err == nil {
			t.Error("it takes what was cut short")
		}
	})
}

// TestStatusHasTheHostsProblems, also those of a kind that only the host knows.
func TestStatusHasTheHostsProblems(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Problems = func() []keyring.Problem {
				return []keyring.Problem{
					{Kind: "paper", Detail: "the printer has none", Advice: "Put some in."},
					{Kind: keyring.ProblemRaftDisk, Detail: "it is full"},
				}
			}
		}})
		s := keyringtest.Ready(t, c)
		if p := keyringtest.Problems(t, s, "paper"); len(p) != 1 || p[0].Advice != "Put some in." {
			t.Errorf("of its own kind: %v", p)
		}
		if p := keyringtest.Problems(t, s, keyring.ProblemRaftDisk); len(p) != 1 || p[0].Advice == "" {
			t.Errorf("of a known kind: %v", p)
		}
		st, err := s.Keyring.Status(t.Context())
		at := func(kind keyring.ProblemKind) int {
			return slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == kind })
		}
		if err != nil || at("paper") < at(keyring.ProblemRaftDisk) || at("paper") > at(keyring.ProblemInlineKEK) {
			t.Errorf("a kind of the host's is a warning: %v, %v", st.Problems, err)
		}
		changed := s.Keyring.Changed()
		s.Keyring.Notify()
		select {
		case <-changed:
		default:
			t.Error("Notify wakes nobody")
		}
	})
}

// TestCheckSaysWhatOpenWould, but for what only a host with a raft can have.
func TestCheckSaysWhatOpenWould(t *testing.T) {
	if err := (keyring.Config{KEKs: []keyring.KEK{keyring.InlineKEK()}}).Check(); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	err := keyring.Config{Rotation: keyring.RotationPolicy{Every: time.Hour, Lead: time.Hour}, RekeyRate: -1}.Check()
	for _, want := range []string{"KEKs is empty", "Rotation.Lead", "RekeyRate"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something on %s", err, want)
		}
	}
}

// TestCloseEndsTheWaitForAForwardedRotation: the leader has answered, and the key does not come.
func TestCloseEndsTheWaitForAForwardedRotation(t *testing.T) {
	n := keyringtest.StartAlone(t, t.Context(), t.TempDir(), []keyring.KEK{keyring.InlineKEK()}, nil)
	err := make(chan error)
	go func() {
		_, e := n.Keyring().WaitRotated(t.Context(), keyring.KeyID{1})
		err <- e
	}()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-err; !errors.Is(err, keyring.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
}

// TestServerRemovedWhileItIsPromotedIsNoMember: it is asked what it holds, which takes its time, and is not added again.
func TestServerRemovedWhileItIsPromotedIsNoMember(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		c.StartFresh("s4")
		if err := leader.Keyring.AddServer(t.Context(), "s4", "s4", keyring.AddServerOptions{}); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 4) // else it is not asked
		var removed sync.Once
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server == leader && e.Kind == "called" && e.To == "s4" && strings.Contains(e.What, `"ask":{`) {
				removed.Do(func() { // by the host, past the keyring
					if err := leader.Raft.RemoveServer("s4", 0, 0).Error(); err != nil {
						t.Error(err)
					}
				})
			}
			return keyringtest.Reply{}
		})
		if err := leader.Keyring.PromoteServer(t.Context(), "s4"); !errors.Is(err, keyring.ErrNotMember) {
			t.Errorf("promoted: %v", err)
		}
		if m, known := memberOf(leader, "s4"); known {
			t.Errorf("it is %v", m)
		}
	})
}

// TestLeaderIsNotReadmittedNorIsAnAddressThatRaftCanNotUse, and nothing has changed by then.
func TestLeaderIsNotReadmittedNorIsAnAddressThatRaftCanNotUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		k, member := leader.Keyring, keyringtest.Follower(c).ID
		before := leader.Raft.GetConfiguration().Configuration()
		if err := k.ReadmitServer(t.Context(), leader.ID, "s1"); err == nil {
			t.Error("the leader is readmitted")
		}
		var taken raft.ServerAddress
		for _, s := range before.Servers {
			if s.ID == leader.ID {
				taken = s.Address
			}
		}
		for _, addr := range []raft.ServerAddress{"", taken, raft.ServerAddress(strings.Repeat("a", 513)), "\xff"} {
			conn := joinConn(leader, "s4")
			conn.Addr = addr
			for call, err := range map[string]error{
				"readmit": k.ReadmitServer(t.Context(), member, addr),
				"add":     k.AddServer(t.Context(), "s4", addr, keyring.AddServerOptions{}),
				"move":    k.AddServer(t.Context(), member, addr, keyring.AddServerOptions{}),
				"join":    k.AcceptJoin(t.Context(), conn, strings.Repeat("0", 32), nil),
			} {
				if err == nil || !strings.Contains(err.Error(), "an address of") && (addr != taken || !strings.Contains(err.Error(), "has the address")) {
					t.Errorf("%s with an address of %d bytes: %v", call, len(addr), err)
				}
			}
		}
		if after := leader.Raft.GetConfiguration().Configuration(); !reflect.DeepEqual(before, after) {
			t.Errorf("the configuration is %v, and was %v", after, before)
		}
	})
}
