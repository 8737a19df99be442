package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestCheckMembersWantsAMajorityOfTheNewVoters asks about changes that are safe and ones that
// would leave a key to too few.
func TestCheckMembersWantsAMajorityOfTheNewVoters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		heal := keyringtest.Refuse(c, "fetch")
		fresh := c.Add("s4")
		time.Sleep(time.Minute) // virtual
		check := func(want bool, voters ...raft.ServerID) {
			t.Helper()
			err := leader.Keyring.CheckMembers(t.Context(), voters)
			if safe := err == nil; safe != want || err != nil && !errors.Is(err, keyring.ErrNotDurable) {
				t.Errorf("%v: %v, want safe %v", voters, err, want)
			}
		}
		check(true, "s1", "s2", "s3")
		check(true, "s1", "s2", "s4")
		check(false, "s1", "s4")
		check(false, "s4")
		check(false, "s1", "s2", "s4", "nobody")
		for _, twice := range [][]raft.ServerID{{"s1", "s1", "s4"}, {"s1", "s2", "s3", "s2"}} {
			err := leader.Keyring.CheckMembers(t.Context(), twice)
			if err == nil || !strings.Contains(err.Error(), "named twice") {
				t.Errorf("%v: %v", twice, err)
			}
		}
		heal()
		keyringtest.AwaitKeys(t, c)
		check(true, "s1", "s4")
		check(true, "s4")
		if err := leader.Raft.DemoteVoter("s4", 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		check(true, "s4") // the voters to be are asked, not those that there are
		if err := leader.Keyring.CheckMembers(t.Context(), nil); err == nil {
			t.Error("no voters are safe")
		}
		if err := fresh.Keyring.CheckMembers(t.Context(), []raft.ServerID{"s1"}); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("on a follower: %v", err)
		}
	})
}

// TestFailedTransferDelaysNothing lets a transfer of leadership fail just as a key is due: raft
// refuses the activation, and tells of no change afterwards.
func TestFailedTransferDelaysNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		due := time.Now().Add(20 * time.Second)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: due})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		other := keyringtest.Follower(c)
		c.Partition(other)
		if err := leader.Raft.Barrier(0).Error(); err != nil { // the other one is behind now
			t.Fatal(err)
		}
		time.Sleep(time.Until(due) - 200*time.Millisecond) // virtual
		transfer := leader.Raft.LeadershipTransferToServer(other.ID, raft.ServerAddress(other.ID))
		time.Sleep(time.Minute) // virtual
		if transfer.Error() == nil || c.Leader() != leader {
			t.Fatalf("the transfer has not failed: %v", transfer.Error())
		}
		if got := keyringtest.StateOf(leader, key.ID); got != keyring.StateActive {
			t.Errorf("the key is %s a minute after it was due", got)
		}
	})
}

// TestOneFailedWrapBlocksNoRotation lets the only KEK fail once: it answers again at once, and
// a caller's own deadline is no fault of the KEK's.
func TestOneFailedWrapBlocksNoRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		only := kektest.New("only")
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.KEKs = []keyring.KEK{only}
		}})
		s := keyringtest.Ready(t, c)
		only.Set(func(k *kektest.KMS) { k.NoWrap = errors.New("throttled") })
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err == nil {
			t.Error("rotated under a KEK that does not wrap")
		}
		only.Set(func(k *kektest.KMS) { k.NoWrap = nil })
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("rotate with the KEK back: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		only.Set(func(k *kektest.KMS) { k.Hang = true })
		if _, err := s.Keyring.Rotate(ctx, keyring.RotateOptions{}); err == nil {
			t.Error("rotated with a KEK that hangs")
		}
		only.Set(func(k *kektest.KMS) { k.Hang = false })
		if p := keyringtest.Problems(t, s, keyring.ProblemKEKAway); len(p) > 0 {
			t.Errorf("the caller's deadline is blamed on the KEK: %v", p)
		}
		if err := s.Keyring.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestKeysSurviveTheReplacementOfAllServers: three servers become six, and those become the three
// that were not there at first, while keys rotate all the time. Who leaves is gone with its disk.
func TestKeysSurviveTheReplacementOfAllServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, func(cfg *keyring.Config) { cfg.Rotation.Every = 2 * time.Second })
		meanwhile := func() { time.Sleep(10 * time.Second) } // virtual
		for i := range 3 {
			meanwhile()
			rc.Store(fmt.Sprintf("with %d more", i), 20)
			rc.Add(raft.ServerID(fmt.Sprintf("s%d", i+4)))
		}
		for i, s := range slices.Clone(rc.Servers[:3]) {
			meanwhile()
			rc.Store(fmt.Sprintf("with %d less", i), 20)
			leave(rc, s)
		}
		rc.Store("in the end", 20)
		meanwhile()
		keyringtest.AwaitKeys(t, rc.Cluster)
		rc.Check("all servers are others")
		if keys := len(rc.Leader().Keyring.Keys()); keys < 20 {
			t.Errorf("only %d keys", keys)
		}
	})
}

// leave takes a server out of the cluster as docs/host.md has it: when CheckMembers says that the
// others can do without it. It may be the leader.
func leave(rc *keyringtest.RecordsCluster, s *keyringtest.Server) {
	rc.TB.Helper()
	var rest []raft.ServerID
	for _, other := range rc.Live() {
		if other != s {
			rest = append(rest, other.ID)
		}
	}
	var err error
	for range 1000 {
		if err = keyringtest.Ready(rc.TB, rc.Cluster).Keyring.CheckMembers(rc.TB.Context(), rest); err == nil {
			break
		}
		time.Sleep(time.Second) // virtual
	}
	if err != nil {
		rc.TB.Fatalf("%s can't leave: %v", s.ID, err)
	}
	rc.Stop(s)
	rc.Remove(s)
	rc.Servers = slices.DeleteFunc(rc.Servers, func(other *keyringtest.Server) bool { return other == s })
}

// joinConn is a connection of a server that joins.
func joinConn(leader *keyringtest.Server, joiner raft.ServerID) keyring.JoinConn {
	return keyring.JoinConn{
		Exporter: bytes.Repeat([]byte{7}, 32), Cluster: "test", Leader: leader.ID, LeaderKey: []byte("leader's key"),
		Joiner: joiner, JoinerKey: []byte("joiner's key"), Addr: raft.ServerAddress(joiner),
	}
}

// TestServerJoinsAHostsClusterByToken: each side proves to the other that it has the token, over one connection.
func TestServerJoinsAHostsClusterByToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		token, err := leader.Keyring.MakeJoinToken(t.Context(), "s4", 0)
		if err != nil {
			t.Fatal(err)
		}
		id, err := keyring.JoinTokenID(token)
		if err != nil {
			t.Fatal(err)
		}
		conn := joinConn(leader, "s4")
		proof, err := leader.Keyring.LeaderProof(conn, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.CheckLeader(token, proof); err != nil {
			t.Errorf("the leader does not prove itself: %v", err)
		}
		checkBound(t, leader, conn, token, proof)
		if proof, err = conn.JoinerProof(token); err != nil {
			t.Fatal(err)
		}
		c.StartFresh("s4")
		if err := leader.Keyring.AcceptJoin(t.Context(), conn, id, proof); err != nil {
			t.Fatal(err)
		}
		if m, known := memberOf(leader, "s4"); !known || m.Suffrage != raft.Nonvoter {
			t.Errorf("it is %v", m)
		}
		if all := leader.Keyring.JoinTokens(); len(all) != 1 || all[0].ID != id || all[0].Server != "s4" || !all[0].Used {
			t.Errorf("the tokens are %v", all)
		}
		if err := leader.Keyring.AcceptJoin(t.Context(), conn, id, proof); err != nil {
			t.Errorf("readmitted: %v", err)
		}
		promoted(t.Context(), t, leader, "s4")
		thief := conn
		thief.JoinerKey = []byte("thief's key")
		if proof, err = thief.JoinerProof(token); err != nil {
			t.Fatal(err)
		}
		if err := leader.Keyring.AcceptJoin(t.Context(), thief, id, proof); !errors.Is(err, keyring.ErrJoinRefused) {
			t.Errorf("a second certificate: %v", err)
		}
		if err := leader.Keyring.WithdrawJoinToken(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if _, err := leader.Keyring.LeaderProof(conn, id); !errors.Is(err, keyring.ErrJoinRefused) {
			t.Errorf("after it was withdrawn: %v", err)
		}
		if err := leader.Keyring.WithdrawJoinToken(t.Context(), id); err == nil {
			t.Error("withdrawn twice")
		}
	})
}

// checkBound wants the proofs of both sides to be good on no connection but that one.
func checkBound(t *testing.T, leader *keyringtest.Server, conn keyring.JoinConn, token string, proof []byte) {
	t.Helper()
	id, err := keyring.JoinTokenID(token)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*keyring.JoinConn){
		"connection": func(c *keyring.JoinConn) { c.Exporter = make([]byte, 32) },
		"leader":     func(c *keyring.JoinConn) { c.Leader = "s9" },
		"leader key": func(c *keyring.JoinConn) { c.LeaderKey = []byte("x") },
		"joiner key": func(c *keyring.JoinConn) { c.JoinerKey = []byte("x") },
		"address":    func(c *keyring.JoinConn) { c.Addr = "x" },
		"cluster":    func(c *keyring.JoinConn) { c.Cluster = "x" },
	} {
		other := conn
		change(&other)
		if err := other.CheckLeader(token, proof); err == nil {
			t.Errorf("the proof is good with another %s", name)
		}
		stolen, err := other.JoinerProof(token)
		if err != nil {
			t.Fatal(err)
		}
		if err := leader.Keyring.AcceptJoin(t.Context(), conn, id, stolen); !errors.Is(err, keyring.ErrJoinRefused) {
			t.Errorf("accepted by the proof for another %s: %v", name, err)
		}
	}
}

// TestTokenOfAMemberIsBoundToItsCertificate: a member that has lost its raft log may come back with a token, which is
// no good for another certificate of its ID from then on.
func TestTokenOfAMemberIsBoundToItsCertificate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		member := keyringtest.Follower(c).ID
		token, err := leader.Keyring.MakeJoinToken(t.Context(), member, 0)
		if err != nil {
			t.Fatal(err)
		}
		id, err := keyring.JoinTokenID(token)
		if err != nil {
			t.Fatal(err)
		}
		accept := func(key string) error {
			conn := joinConn(leader, member)
			conn.JoinerKey = []byte(key)
			proof, err := conn.JoinerProof(token)
			if err != nil {
				t.Fatal(err)
			}
			return leader.Keyring.AcceptJoin(t.Context(), conn, id, proof)
		}
		if err := accept("the first"); err != nil {
			t.Fatal(err)
		}
		if m, known := memberOf(leader, member); !known || m.Suffrage != raft.Nonvoter {
			t.Errorf("readmitted, it is %v", m)
		}
		if all := leader.Keyring.JoinTokens(); len(all) != 1 || !all[0].Used {
			t.Errorf("the tokens are %v", all)
		}
		if err := accept("another"); !errors.Is(err, keyring.ErrJoinRefused) {
			t.Errorf("a second certificate: %v", err)
		}
	})
}
