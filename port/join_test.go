package port_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// startJoined starts a server that has joined, and waits until it has been given a vote, by the leader's port, and opens what
// was sealed.
func (hs *hosts) startJoined(leader, h *host, sealed []byte) {
	hs.t.Helper()
	hs.run(h, false)
	for began := time.Now(); ; time.Sleep(time.Second) { // virtual
		if s, _ := find(leader, h.id); s.Suffrage == raft.Voter {
			break
		}
		if time.Since(began) > time.Minute {
			hs.t.Fatalf("%s has no vote", h.id)
		}
	}
	if got, err := h.keys.Decrypt(sealed, nil); err != nil || string(got) != "data" {
		hs.t.Errorf("%s opens %q, %v", h.id, got, err)
	}
	time.Sleep(2 * time.Second) // virtual
	if timeout := h.raft.ReloadableConfig().HeartbeatTimeout; timeout > time.Minute {
		hs.t.Errorf("%s has caught up, and would wait %v before it begins an election", h.id, timeout)
	}
}

func (hs *hosts) seal(leader *host) []byte {
	hs.t.Helper()
	sealed, err := leader.keys.Encrypt([]byte("data"), nil)
	if err != nil {
		hs.t.Fatal(err)
	}
	return sealed
}

// TestServerJoinsByToken, which it proves to the leader and the leader to it, at whichever server it asks.
func TestServerJoinsByToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 3)
		leader := hs.leader()
		sealed := hs.seal(leader)
		token, err := leader.keys.MakeJoinToken(t.Context(), "h4", 0)
		if err != nil {
			t.Fatal(err)
		}
		h4 := hs.add("h4")
		hs.listen(h4)
		if err := h4.port.Join(t.Context(), []string{hs.other(leader).addr}, token); err != nil {
			t.Fatal(err)
		}
		hs.startJoined(leader, h4, sealed)
	})
}

// TestServerThatWasAddedJoins without a token, at servers whose IDs it knows.
func TestServerThatWasAddedJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 1)
		leader := hs.leader()
		sealed := hs.seal(leader)
		h2 := hs.add("h2")
		if err := leader.keys.AddServer(t.Context(), "h2", raft.ServerAddress(h2.addr), keyring.AddServerOptions{}); err != nil {
			t.Fatal(err)
		}
		hs.listen(h2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := h2.port.Join(ctx, []string{"h1@" + leader.addr}, ""); err != nil {
			t.Fatal(err)
		}
		hs.startJoined(leader, h2, sealed)
		if err := h2.port.Join(t.Context(), []string{"h1@" + leader.addr}, ""); err == nil || !strings.Contains(err.Error(), "before raft is started") {
			t.Errorf("when it runs: %v", err)
		}
	})
}

// TestServerThatHasLostItsLogJoinsAgain by its certificate, and has no vote before it holds every key.
func TestServerThatHasLostItsLogJoinsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 3)
		leader := hs.leader()
		sealed := hs.seal(leader)
		keyringtest.AwaitHolders(leader.keys, leader.keys.Keys()[0].ID, 3)
		lost := hs.other(leader)
		hs.stop(lost)
		again := hs.add(lost.id)
		again.tls = lost.tls
		hs.listen(again)
		if err := again.port.Join(t.Context(), []string{string(leader.id) + "@" + leader.addr}, ""); err != nil {
			t.Fatal(err)
		}
		for _, s := range leader.raft.GetConfiguration().Configuration().Servers {
			if votes := s.Suffrage == raft.Voter; votes == (s.ID == lost.id) {
				t.Errorf("%s votes is %v", s.ID, votes)
			}
		}
		hs.startJoined(leader, again, sealed)
	})
}

// TestJoinIsRefused to a server that nobody has added, and learns no more than that.
func TestJoinIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 1)
		leader := hs.leader()
		other, err := leader.keys.MakeJoinToken(t.Context(), "h9", 0)
		if err != nil {
			t.Fatal(err)
		}
		h2 := hs.add("h2")
		hs.listen(h2)
		for name, tt := range map[string]struct {
			servers []string
			token   string
			want    string
		}{
			"no token":                {[]string{"h1@" + leader.addr}, "", "the cluster has no server with this ID"},
			"of another server":       {[]string{leader.addr}, other, "the cluster has no server with this ID"},
			"a server that is not h1": {[]string{"h3@" + leader.addr}, "", `want "h3"`},
			"malformed":               {[]string{leader.addr}, "token", "malformed"},
			"no ID and no token":      {[]string{leader.addr}, "", "id@host:port"},
			"no address":              {[]string{"h1@nowhere"}, "", "nowhere"},
			"nobody":                  {nil, "", "servers is empty"},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Millisecond) // not when it asks
			if err := h2.port.Join(ctx, tt.servers, tt.token); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %q", name, err, tt.want)
			}
			cancel()
		}
		if _, known := find(leader, "h2"); known {
			t.Error("h2 is a member")
		}
	})
}

func find(h *host, id raft.ServerID) (s raft.Server, known bool) {
	for _, s := range h.raft.GetConfiguration().Configuration().Servers {
		if s.ID == id {
			return s, true
		}
	}
	return s, false
}

// TestServerThatJoinsAdmitsTheMembersAlone: before it has a raft configuration, those that have added it.
func TestServerThatJoinsAdmitsTheMembersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 1)
		leader := hs.leader()
		token, err := leader.keys.MakeJoinToken(t.Context(), "h2", 0)
		if err != nil {
			t.Fatal(err)
		}
		h2 := hs.add("h2")
		hs.listen(h2)
		if err := h2.port.Join(t.Context(), []string{leader.addr}, token); err != nil {
			t.Fatal(err)
		}
		hs.stop(leader) // so that it gets no configuration
		hs.run(h2, false)
		dial := func(source peer.Source) error {
			conn, err := hs.dialer(source).Dial(t.Context(), "h2", h2.addr, peer.ALPNRaft)
			if err == nil {
				conn.Close()
			}
			return err
		}
		if err := dial(leader.tls); err != nil {
			t.Errorf("the leader: %v", err)
		}
		if err := dial(hs.ca.Source(uri("h3"), nil)); err == nil {
			t.Error("a server that is no member gets a connection")
		}
	})
}
