package node_test

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
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// callsOfNode are all methods of Node that take a context, and JoinToken.
func callsOfNode(n *node.Node, key keyring.KeyID, sealed []byte, token string) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Apply":   func(ctx context.Context) error { _, err := n.Apply(ctx, []byte("x")); return err },
		"Encrypt": func(ctx context.Context) error { _, err := n.Encrypt(ctx, nil, nil); return err },
		"Decrypt": func(ctx context.Context) error { _, err := n.Decrypt(ctx, sealed, nil); return err },
		"Sign":    func(ctx context.Context) error { _, err := n.Sign(ctx, map[string]any{"aud": "x"}); return err },
		"SignTyped": func(ctx context.Context) error {
			_, err := n.SignTyped(ctx, "at+jwt", map[string]any{"aud": "x"})
			return err
		},
		"Adopt":         func(ctx context.Context) error { return n.Adopt(ctx, key) },
		"ConfirmBackup": func(ctx context.Context) error { return n.ConfirmBackup(ctx, [32]byte{1}) },
		"EncryptTo": func(ctx context.Context) error {
			return n.EncryptTo(ctx, nil, nil, func(context.Context, []byte) error { return nil })
		},
		"Status":               func(ctx context.Context) error { _, err := n.Status(ctx); return err },
		"Rotate":               func(ctx context.Context) error { _, err := n.Rotate(ctx, keyring.RotateOptions{}); return err },
		"Remove":               func(ctx context.Context) error { return n.Remove(ctx, key, keyring.RemoveOptions{}) },
		"AddServer":            func(ctx context.Context) error { return n.AddServer(ctx, "s8", "127.0.0.1:9") },
		"AddNonvoter":          func(ctx context.Context) error { return n.AddNonvoter(ctx, "s8", "127.0.0.1:9") },
		"PromoteServer":        func(ctx context.Context) error { return n.PromoteServer(ctx, "s2") },
		"DemoteServer":         func(ctx context.Context) error { return n.DemoteServer(ctx, "s2") },
		"RemoveServer":         func(ctx context.Context) error { return n.RemoveServer(ctx, "s2", keyring.RemoveServerOptions{}) },
		"Leave":                func(ctx context.Context) error { return n.Leave(ctx) },
		"TransferLeadership":   func(ctx context.Context) error { return n.TransferLeadership(ctx) },
		"TransferLeadershipTo": func(ctx context.Context) error { return n.TransferLeadershipTo(ctx, "s2") },
		"JoinToken":            func(context.Context) error { _, err := n.JoinToken("s9", time.Hour); return err },
		"WithdrawJoinToken": func(ctx context.Context) error {
			return n.WithdrawJoinToken(ctx, token)
		},
	}
}

// TestEveryCallOfANodeEndsWithoutALeader: most of the voters are gone, and the contexts have no deadline. All but the two
// that need none, or can tell at once, say so and what to do.
func TestEveryCallOfANodeEndsWithoutALeader(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		cfg.App = keyringtest.NullFSM{}
		node.ShortenPatience(cfg, 2*time.Second)
	})
	c.Ready(ctx)
	n := c.Nodes["s1"]
	sealed, err := n.Encrypt(ctx, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	token := keyringtest.JoinToken(t, n, "s7", 0)
	id, err := keyring.JoinTokenID(token)
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []raft.ServerID{"s2", "s3"} {
		closeNode(t, c.Nodes[gone])
		delete(c.Nodes, gone)
	}
	c.Await(ctx, n, "without a leader", func(st keyring.Status) bool { return st.Leader == "" })
	calls := callsOfNode(n, n.Keyring().Keys()[0].ID, sealed, id)
	wantAllCalls(t, calls)
	var all sync.WaitGroup
	for name, call := range calls {
		all.Go(func() {
			err := call(context.Background())
			switch name {
			case "Decrypt":
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			case "Apply":
				if !errors.Is(err, keyring.ErrNotLeader) {
					t.Errorf("%s: %v", name, err)
				}
			default:
				if !errors.Is(err, keyring.ErrNoLeader) || !strings.Contains(err.Error(), "Status of another server has one") {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	all.Wait()
	if node.LeaderPatience != 30*time.Second {
		t.Error("the documentation says 30 seconds")
	}
}

// wantAllCalls requires the calls to be all that take a context.
func wantAllCalls(t *testing.T, calls map[string]func(context.Context) error) {
	t.Helper()
	ctx := reflect.TypeFor[context.Context]()
	var missing []string
	for m := range reflect.TypeFor[*node.Node]().Methods() {
		takes := m.Type.NumIn() > 1 && m.Type.In(1) == ctx
		if takes && calls[m.Name] == nil {
			missing = append(missing, m.Name)
		}
	}
	if slices.Sort(missing); len(missing) > 0 {
		t.Errorf("%v are not in the table", missing)
	}
}

// TestTimeOfALeaderAtWorkIsNoWait: a call that has waited for a moment, and was then worked on for long, waits for the next
// leader as any other.
func TestTimeOfALeaderAtWorkIsNoWait(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := startAlone(t, dir)
		defer closeNode(t, n)
		tries := 0
		got, err := node.WhenLed(context.Background(), n, func() (int, error) {
			switch tries++; tries {
			case 1:
				return 0, keyring.ErrNotReady
			case 2:
				time.Sleep(time.Minute)
				return 0, keyring.NotLeaderError{}
			case 3, 4, 5:
				return 0, keyring.NotLeaderError{}
			}
			return 7, nil
		})
		if got != 7 || err != nil {
			t.Errorf("after %d tries: %d, %v", tries, got, err)
		}
	})
}
