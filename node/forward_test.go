package node_test

import (
	"context"
	"errors"
	"iter"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

func TestNodesForwardToTheLeader(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	for id, n := range c.Nodes {
		sealed, err := n.Encrypt(ctx, []byte("hello"), []byte("aad"))
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		key, err := n.Rotate(ctx, keyring.RotateOptions{})
		if err != nil || key.State != keyring.StateActive {
			t.Fatalf("%s: key is %s, %v", id, key.State, err)
		}
		for other, n := range c.Nodes {
			if got, err := n.Decrypt(ctx, sealed, []byte("aad")); err != nil || string(got) != "hello" {
				t.Errorf("sealed on %s, opened on %s: %q, %v", id, other, got, err)
			}
		}
	}
}

// TestNodesForwardRemove: wherever it is asked for, the key is removed there when the call returns.
// Without Data that is ErrNoData everywhere.
func TestNodesForwardRemove(t *testing.T) {
	t.Parallel()
	for _, data := range []keyring.SealedData{keyring.NoData{}, nil} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.Data = data })
		c.Ready(ctx)
		for id, n := range c.Nodes {
			key, err := n.Rotate(ctx, keyring.RotateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
			err = n.Remove(ctx, key.ID, keyring.RemoveOptions{})
			there := slices.ContainsFunc(n.Keyring().Keys(), func(k keyring.Key) bool { return k.ID == key.ID })
			switch {
			case data == nil && !errors.Is(err, keyring.ErrNoData):
				t.Errorf("%s: without data: %v", id, err)
			case data != nil && (err != nil || there):
				t.Errorf("%s: %v; the key is there: %t", id, err, there)
			}
			if err := n.Remove(ctx, key.ID, keyring.RemoveOptions{Now: true, Force: data == nil}); err != nil {
				t.Errorf("%s: again: %v", id, err)
			}
		}
	}
}

// TestNodesForwardStatus: what only the leader knows, every node tells, with keys that are its own.
func TestNodesForwardStatus(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	if _, err := c.Nodes["s1"].Rotate(ctx, keyring.RotateOptions{Full: true}); !errors.Is(err, keyring.ErrNoData) {
		t.Fatal(err) // so there is a leader that is ready
	}
	for id, n := range c.Nodes {
		if err := n.AddServer(ctx, "s9", "127.0.0.1:9"); err != nil { // which never comes
			t.Fatalf("%s: %v", id, err)
		}
		st, err := n.Status(ctx)
		for err == nil && !hasProblem(st, keyring.ProblemNonvoter) { // its leader has it in a moment
			st, err = n.Status(ctx)
		}
		own := n.Keyring().Keys()
		if err != nil || st.ID != n.Leader() || len(st.Keys) != len(own) || !reflect.DeepEqual(st.Keys, own) || len(st.NoBackup) != 1 {
			t.Errorf("%s: %+v, %v", id, st, err)
		}
	}
	if err := c.Nodes["s2"].RemoveServer(ctx, "s9", keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	for id, n := range c.Nodes {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Status(ctx); !errors.Is(err, keyring.ErrClosed) {
			t.Errorf("%s, closed: %v", id, err)
		}
		delete(c.Nodes, id)
	}
}

// heldData has nothing under any key, and does not say so before it is released.
type heldData struct {
	keyring.NoData
	release chan struct{}
}

func (d heldData) Under(ctx context.Context, _ keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		select {
		case <-d.release:
		case <-ctx.Done():
			yield(keyring.Sealed{}, ctx.Err())
		}
	}
}

// TestRemovalsThatWaitLeaveTheLeaderReachable: a follower that waits for many of them still gets its
// other calls through.
func TestRemovalsThatWaitLeaveTheLeaderReachable(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	data := heldData{release: make(chan struct{})}
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.Data = data })
	c.Ready(ctx)
	old := c.Nodes["s1"].Keyring().Keys()[0].ID
	if _, err := c.Nodes["s1"].Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	const calls = 100 // more than connections
	errs := make(chan error, 3*calls)
	for _, n := range c.Nodes {
		for range calls {
			go func() { errs <- n.Remove(ctx, old, keyring.RemoveOptions{}) }()
		}
	}
	for id, n := range c.Nodes {
		for key := keyring.StateInactive; key != keyring.StateRekeying; { // a removal has arrived
			changed := n.Keyring().Changed()
			if key = keyOf(n, old).State; key != keyring.StateRekeying {
				<-changed
			}
		}
		if _, err := n.Encrypt(ctx, []byte("meanwhile"), nil); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	close(data.release)
	for range 3 * calls { // side by side, and each is right that the key is gone
		if err := <-errs; err != nil {
			t.Errorf("remove: %v", err)
		}
	}
}

// TestNodesForwardSignAndRevoke: wherever they are asked for, all servers see what comes of it.
func TestNodesForwardSignAndRevoke(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	claims, me := map[string]any{"aud": "me", "sub": "job:web"}, keyring.Expect{Audience: []string{"me"}}
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.Tokens.Issuer = "https://issuer.example" })
	for _, n := range c.Nodes { // before there is a leader: it waits for one
		if token, err := n.Sign(ctx, claims); err != nil || token == "" {
			t.Fatalf("%q, %v", token, err)
		}
	}
	c.Ready(ctx)
	for id, n := range c.Nodes {
		token, err := n.Sign(ctx, claims, map[string]any{"by": id})
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		for other, n := range c.Nodes {
			var got struct{ By raft.ServerID }
			if err := n.Keyring().Verify(token, me, &got); err != nil || got.By != id {
				t.Errorf("signed for %s, verified on %s: %+v, %v", id, other, got, err)
			}
		}
		if token, err := n.Sign(ctx, map[string]any{"exp": 1}); err == nil || token != "" || !strings.Contains(err.Error(), "exp") {
			t.Errorf("%s: of the past: %q, %v", id, token, err)
		}
		if token, err := n.Sign(ctx, "no object"); err == nil || token != "" {
			t.Errorf("%s: of no claims: %q, %v", id, token, err)
		}
		signer, err := n.Keyring().ActiveKey()
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		key, err := n.Rotate(ctx, keyring.RotateOptions{Revoke: []keyring.KeyID{signer.ID}})
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		for other, n := range c.Nodes {
			awaitState(n, key.ID, keyring.StateActive)
			if err := n.Keyring().Verify(token, me); !errors.Is(err, keyring.ErrToken) {
				t.Errorf("revoked on %s, on %s: %v", id, other, err)
			}
		}
		if _, err := n.Rotate(ctx, keyring.RotateOptions{Revoke: []keyring.KeyID{{9}}}); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("%s: revoke a key that is not there: %v", id, err)
		}
	}
}

// TestCallGoesToTheNextLeader: the one that the server knows of has gone.
func TestCallGoesToTheNextLeader(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	leader := c.Nodes["s1"].Leader()
	asked := keyringtest.Besides(leader)
	if err := c.Nodes[leader].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.Nodes, leader)
	if _, err := c.Nodes[asked].Encrypt(ctx, []byte("hello"), nil); err != nil {
		t.Error(err)
	}
}
