package keyringtest

// What tests wait for.

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// Ready waits until the live servers are ready, and a leader seals, and returns it.
func Ready(t testing.TB, c *Cluster) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Hour) // virtual
	defer cancel()
	for _, s := range c.Live() {
		if err := s.Keyring.WaitReady(ctx); err != nil {
			t.Fatalf("%s: %v", s.ID, err)
		}
	}
	for {
		leader := c.Leader()
		changed := leader.Keyring.Changed()
		_, err := leader.Keyring.Encrypt(nil, nil)
		if !errors.Is(err, keyring.ErrNotReady) && !errors.Is(err, keyring.ErrNotLeader) {
			return leader
		}
		select { // its barrier is on the way, or another leads
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: %v", leader.ID, err)
		}
	}
}

// AwaitKeys waits until every live server knows what the leader knows and holds every key. With a
// pace of hours a follower learns minutes late that an entry is committed, and a key takes
// several entries.
func AwaitKeys(t testing.TB, c *Cluster) {
	t.Helper()
	for range 10_000 {
		if lags := behind(t, c); len(lags) == 0 {
			return
		}
		time.Sleep(time.Second) // virtual
	}
	t.Errorf("servers %v are behind, or keys are missing", behind(t, c))
}

// behind names the live servers that are not there yet.
func behind(t testing.TB, c *Cluster) (ids []raft.ServerID) {
	want := section(c.Leader())
	for _, s := range c.Live() {
		same := section(s) == want // first: what is missing is missing of the ring that the server has by then
		st, err := s.Keyring.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(st.Missing) > 0 || !same {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// AwaitRing waits until every live server has applied what the leader has.
func AwaitRing(t testing.TB, c *Cluster) {
	t.Helper()
	for wait := time.Millisecond; wait < 1000*time.Hour; wait *= 2 {
		want := section(c.Leader())
		if !slices.ContainsFunc(c.Live(), func(s *Server) bool { return section(s) != want }) {
			return
		}
		time.Sleep(wait) // virtual
	}
	t.Error("servers are behind the leader")
}

// AwaitState waits until this server knows the key in that state.
func AwaitState(k *keyring.Keyring, id keyring.KeyID, state keyring.State) {
	for {
		changed := k.Changed()
		if slices.ContainsFunc(k.Keys(), func(key keyring.Key) bool { return key.ID == id && key.State == state }) {
			return
		}
		<-changed
	}
}
