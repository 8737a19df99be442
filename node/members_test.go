package node_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// suffrage is how the others' raft configuration has a server: nothing if it is not in it.
func suffrage(t *testing.T, k *keyring.Keyring, id raft.ServerID) string {
	t.Helper()
	st, err := k.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range st.Servers {
		if s.ID == id {
			return s.Suffrage.String()
		}
	}
	return ""
}

// TestWipedNodeVotesOnlyOnceItHoldsEveryKey brings a wiped server back that can't write keys:
// it must stay a non-voter. When it can, it becomes a voter.
func TestWipedNodeVotesOnlyOnceItHoldsEveryKey(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	leader := c.Nodes["s1"].Leader()
	keyringtest.AwaitHolders(c.Nodes[leader].Keyring(), c.Nodes[leader].Keyring().Keys()[0].ID, 3)
	wiped := raft.ServerID("s1")
	if leader == wiped {
		wiped = "s2"
	}
	if err := c.Nodes[wiped].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.Nodes, wiped)
	c.Dirs[wiped] = t.TempDir()
	broken := kektest.New("kms")
	broken.Set(func(k *kektest.KMS) { k.Err = errors.New("away") })
	cfg := c.Config(wiped)
	cfg.Peers, cfg.KEKs = c.Addrs, []keyring.KEK{keyring.InlineKEK(), broken}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes[wiped] = n
	k := c.Nodes[leader].Keyring()
	until := func(want string) {
		t.Helper()
		for {
			changed := k.Changed()
			if got := suffrage(t, k, wiped); got == want {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("the wiped server is %q, want %q", suffrage(t, k, wiped), want)
			}
		}
	}
	until("Nonvoter")
	for range 3 { // rotations go on without it
		if _, err := c.Nodes[leader].Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := suffrage(t, k, wiped); got != "Nonvoter" {
			t.Fatalf("a server that holds nothing is %s", got)
		}
	}
	broken.Set(func(k *kektest.KMS) { k.Err = nil })
	until("Voter")
	for _, key := range k.Keys() {
		if len(key.Holders) != 3 {
			t.Errorf("key %s is held by %v", key.ID, key.Holders)
		}
	}
}

// TestNodeJoinsByAddress adds a fourth server that knows nothing but an address.
func TestNodeJoinsByAddress(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	sealed, err := c.Nodes["s1"].Encrypt(ctx, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ln := keyringtest.Listen(t)
	c.Addrs["s4"], c.Dirs["s4"] = ln.Addr().String(), t.TempDir()
	cfg := c.Config("s4")
	cfg.Listener, cfg.Join = ln, []string{"s1@127.0.0.1:1", "s2@" + c.Addrs["s2"]}
	if err := c.Nodes["s1"].AddServer(ctx, "s4", cfg.Addr); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	c.Ready(ctx)
	for suffrage(t, n.Keyring(), "s4") != "Voter" {
		changed := n.Keyring().Changed()
		if suffrage(t, n.Keyring(), "s4") == "Voter" {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("never became a voter")
		}
	}
	if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	// A second server under a living one's name is refused, and takes nobody's place.
	twin := c.Config("s4")
	twin.Dir, twin.Join = t.TempDir(), []string{"s1@" + c.Addrs["s1"]}
	twin.Listener = keyringtest.Listen(t)
	twin.Addr = twin.Listener.Addr().String()
	short, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	if second, err := node.Start(short, twin); err == nil {
		second.Close()
		t.Error("a second s4 was taken in")
	}
	if got := suffrage(t, n.Keyring(), "s4"); got != "Voter" {
		t.Errorf("s4 is %s after its twin has asked", got)
	}
}

// TestClosedNodeSaysSo: what waits for a leader does not wait for one on a closed node.
func TestClosedNodeSaysSo(t *testing.T) {
	n, err := node.Start(t.Context(), node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Rotate(context.Background(), keyring.RotateOptions{}); !errors.Is(err, keyring.ErrClosed) {
		t.Errorf("Rotate: %v", err)
	}
	if _, err := n.Encrypt(context.Background(), nil, nil); !errors.Is(err, keyring.ErrClosed) {
		t.Errorf("Encrypt: %v", err)
	}
}
