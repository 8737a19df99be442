package port_test

import (
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
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

// TestServerThatHasMovedTellsTheLeader, and is asked for by nobody: its address is another one when it comes back.
func TestServerThatHasMovedTellsTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 3)
		leader := hs.leader()
		moved := *hs.other(leader)
		hs.stop(&moved)
		moved.addr = "elsewhere.test:7900"
		hs.start(&moved, false)
		for began := time.Now(); ; time.Sleep(time.Second) { // virtual
			if s, _ := find(leader, moved.id); string(s.Address) == moved.addr {
				return
			}
			if time.Since(began) > time.Minute {
				t.Fatal("the raft configuration has its old address")
			}
		}
	})
}
