package node_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// countingFSM tells of each snapshot that is made of it.
type countingFSM struct {
	keyringtest.NullFSM
	made chan struct{}
}

func (f countingFSM) Snapshot() (raft.FSMSnapshot, error) { return f, nil }

func (f countingFSM) Persist(sink raft.SnapshotSink) error {
	select {
	case f.made <- struct{}{}:
	default:
	}
	return sink.Close()
}

// TestNodeMakesSnapshotsByBytes, long before there are 8192 entries, and before raft looks.
func TestNodeMakesSnapshotsByBytes(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	app := countingFSM{made: make(chan struct{}, 1)}
	n, err := node.Start(ctx, node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, App: app, SnapshotBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer closeNode(t, n)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for range 5 {
			if _, err := n.Apply(ctx, make([]byte, 256<<10)); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-app.made:
		case <-ctx.Done():
			t.Fatal("no snapshot of a log of more than a MiB")
		}
	}
}

func TestLimitsOfTheLogAreChecked(t *testing.T) {
	for field, cfg := range map[string]node.Config{
		"SnapshotEntries": {SnapshotEntries: 15}, "SnapshotBytes": {SnapshotBytes: 64}, "SnapshotBytes is -1": {SnapshotBytes: -1},
	} {
		cfg.Dir, cfg.KEKs = t.TempDir(), []keyring.KEK{keyring.InlineKEK()}
		if _, err := node.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
