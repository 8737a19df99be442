package scenarios_test

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

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
