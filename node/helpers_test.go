package node_test

import (
	"runtime"
	"testing"

	"example.com/keyring"
	"example.com/keyring/node"
)

// closeNode ends a node.
func closeNode(t *testing.T, n *node.Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// startAlone starts a server alone, which ends with the test.
func startAlone(t *testing.T, dir string) *node.Node {
	t.Helper()
	n, err := node.Start(t.Context(), node.Config{
		Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// goroutines are the stacks of all goroutines.
func goroutines() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// keyOf returns the metadata of a key, or that of none.
func keyOf(n *node.Node, id keyring.KeyID) keyring.Key {
	for _, k := range n.Keyring().Keys() {
		if k.ID == id {
			return k
		}
	}
	return keyring.Key{}
}

// awaitState waits until a server knows the key in that state.
func awaitState(n *node.Node, id keyring.KeyID, s keyring.State) {
	for {
		changed := n.Keyring().Changed()
		if keyOf(n, id).State == s {
			return
		}
		<-changed
	}
}

// awaitTokens waits until a node knows so many join tokens.
func awaitTokens(t *testing.T, n *node.Node, want int) {
	t.Helper()
	for {
		changed := n.Keyring().Changed()
		if len(n.JoinTokens()) == want {
			return
		}
		<-changed
	}
}
