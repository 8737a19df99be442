package node_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// TestNodeSaysThatRaftCanNotWrite, as long as it can't.
func TestNodeSaysThatRaftCanNotWrite(t *testing.T) {
	t.Parallel()
	full := map[raft.ServerID]*atomic.Bool{}
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		is := &atomic.Bool{}
		full[cfg.ID] = is
		node.WrapRaftLog(cfg, func(log raft.LogStore) raft.LogStore { return fullLog{log, is} })
	})
	defer c.Close()
	c.Ready(t.Context())
	leader := c.Nodes["s1"].Leader()
	id := raft.ServerID("s1")
	if leader == id {
		id = "s2"
	}
	await := func(want string) {
		t.Helper()
		for {
			changed := c.Nodes[id].Keyring().Changed()
			if got := raftDiskProblem(t, c.Nodes[id].Keyring()); (got != "") == (want != "") && strings.Contains(got, want) {
				return
			}
			select {
			case <-changed:
			case <-t.Context().Done():
				t.Fatal("it never says so")
			}
		}
	}
	full[id].Store(true)
	if _, err := c.Nodes[leader].Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	await("entries of its log since")
	full[id].Store(false)
	await("")
}

// fullLog is a log on a disk that may be full.
type fullLog struct {
	raft.LogStore
	full *atomic.Bool
}

func (l fullLog) StoreLogs(logs []*raft.Log) error {
	if l.full.Load() {
		return errors.New("no space left on device")
	}
	return l.LogStore.StoreLogs(logs)
}

// raftDiskProblem is what Status says of raft's disk, or nothing.
func raftDiskProblem(t *testing.T, k *keyring.Keyring) string {
	t.Helper()
	st, err := k.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Problems {
		if p.Kind == keyring.ProblemRaftDisk {
			return p.Detail
		}
	}
	return ""
}
