package port_test

import (
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/port"
	"github.com/hashicorp/raft"
)

// TestServerThatWasRemovedWhileItWasDownSaysSo: the others have closed its connections, and it hears from no leader.
func TestServerThatWasRemovedWhileItWasDownSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 3)
		leader := hs.leader()
		gone := hs.other(leader)
		hs.stop(gone)
		if err := leader.keys.RemoveServer(t.Context(), gone.id, keyring.RemoveServerOptions{}); err != nil {
			t.Fatal(err)
		}
		again := *gone // on the same log
		hs.start(&again, false)
		time.Sleep(time.Minute) // virtual
		if p := again.problem(t, keyring.ProblemRemoved); p.Severity != keyring.SeverityCritical || p.Server != "" {
			t.Errorf("%+v", p)
		}
	})
}

// TestServerThatHasMovedTellsTheLeader: it comes back at another address, which nobody knows, or which the others find in
// their configurations.
func TestServerThatHasMovedTellsTheLeader(t *testing.T) {
	const elsewhere = "elsewhere.test:7900"
	for name, addresses := range map[string]map[raft.ServerID]string{
		"nobody knows": nil, "the others find it": {"h1": elsewhere, "h2": elsewhere, "h3": elsewhere},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hs := newHosts(t, 3)
				for _, h := range hs.all {
					hs.listen(h, func(c *port.Config) { c.Addresses = addresses })
					hs.run(h, true)
				}
				for _, h := range hs.all {
					if err := h.keys.WaitReady(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				leader := hs.leader()
				moved := *hs.other(leader)
				hs.stop(&moved)
				moved.addr = elsewhere
				hs.start(&moved, false)
				for began := time.Now(); ; time.Sleep(time.Second) { // virtual
					if s, _ := find(leader, moved.id); string(s.Address) == elsewhere {
						return
					}
					if time.Since(began) > time.Minute {
						t.Fatal("the raft configuration has its old address")
					}
				}
			})
		})
	}
}
