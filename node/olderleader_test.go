package node_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

// TestNodesForwardTyp: wherever it is signed, the token has the typ, and every server takes it for one of that typ alone.
func TestNodesForwardTyp(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	access := keyringtest.ForMe
	access.Type = "at+jwt"
	for id, n := range c.Nodes {
		typed, err := n.SignTyped(ctx, "application/at+jwt", keyringtest.ClaimsForMe())
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		plain, err := n.SignTyped(ctx, "", keyringtest.ClaimsForMe())
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		for other, n := range c.Nodes {
			if err := n.Keyring().Verify(typed, access); err != nil {
				t.Errorf("signed for %s, verified on %s: %v", id, other, err)
			}
			if n.Keyring().Verify(typed, keyringtest.ForMe) == nil || n.Keyring().Verify(plain, access) == nil {
				t.Errorf("signed for %s, on %s: a token of one typ is taken for one of another", id, other)
			}
			if err := n.Keyring().Verify(plain, keyringtest.ForMe); err != nil {
				t.Errorf("signed for %s, verified on %s: %v", id, other, err)
			}
		}
		if token, err := n.SignTyped(ctx, "at jwt", keyringtest.ClaimsForMe()); err == nil || token != "" {
			t.Errorf("%s: %q, %v", id, token, err)
		}
	}
}

// newerCalls are those that leaders of older builds do not know, by their paths.
func newerCalls(ctx context.Context, n *node.Node) map[string]func() error {
	return map[string]func() error{
		"/node/adopt":          func() error { return n.Adopt(ctx, keyring.KeyID{1}) },
		"/node/confirm-backup": func() error { return n.ConfirmBackup(ctx, [32]byte{1}) },
		"/node/sign-typed":     func() error { _, err := n.SignTyped(ctx, "at+jwt", keyringtest.ClaimsForMe()); return err },
	}
}

// TestOlderLeaderRefusesWhatItDoesNotKnow, at once and in words, and still does what it knows.
func TestOlderLeaderRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		for path := range newerCalls(ctx, nil) {
			node.Unlearn(cfg, path)
		}
	})
	c.Ready(ctx)
	n := c.Nodes[keyringtest.Besides(c.Nodes["s1"].Leader())]
	calls := newerCalls(ctx, n)
	for _, path := range slices.Sorted(maps.Keys(calls)) {
		if err := calls[path](); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "its build does not have this call") {
			t.Errorf("%s: %v", path, err)
		}
	}
	token, err := n.SignTyped(ctx, "JWT", keyringtest.ClaimsForMe())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Keyring().Verify(token, keyringtest.ForMe); err != nil {
		t.Error(err)
	}
}
