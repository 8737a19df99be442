package fsm_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// lead starts a raft of one server on a Machine, and waits until it leads.
func lead(t *testing.T, f *fsm.Machine) *keyringtest.Host {
	t.Helper()
	h := keyringtest.NewHosts(t, 1)[0]
	h.Run(t, f)
	for h.Raft.State() != raft.Leader {
		<-h.Raft.LeaderCh()
	}
	return h
}

func TestApplysAnswerReachesTheProposer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := filled(t)
		h := lead(t, f)
		propose := func(ctx context.Context, cmd meta.Command) error {
			return f.Propose(ctx, h.Raft, []meta.Command{cmd})
		}
		active := f.Ring().Active().ID
		for _, cmd := range []meta.Command{
			{Init: &meta.Init{Cluster: meta.ClusterID{1}}},
			{Rekey: &meta.Rekey{ID: active}},
			{Remove: &meta.Remove{ID: active, From: meta.StateActive, Time: time.Now().UTC().Round(0)}},
		} {
			if err := propose(t.Context(), cmd); !errors.Is(err, meta.ErrCommandRefused) {
				t.Errorf("%+v: %v", cmd, err)
			}
		}
		synctest.Wait() // for the barriers behind them
		index := h.Raft.LastIndex()
		forget := meta.Command{Forget: &meta.Forget{Servers: []string{"x"}}}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := propose(ctx, forget); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		if err := propose(t.Context(), meta.Command{}); !errors.Is(err, meta.ErrMalformed) {
			t.Errorf("an empty command: %v", err)
		}
		if h.Raft.LastIndex() != index {
			t.Error("what was not to be proposed is in the log")
		}
		if err := propose(t.Context(), forget); err != nil {
			t.Errorf("a good command: %v", err)
		}
	})
}

// TestProposerLearnsThatRaftDoesNotLead, or that it was shut down.
func TestProposerLearnsThatRaftDoesNotLead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := filled(t)
		h := keyringtest.NewHosts(t, 2)[0] // the other is down: nobody leads
		h.Run(t, f)
		forget := []meta.Command{{Forget: &meta.Forget{Servers: []string{"x"}}}}
		if err := f.Propose(t.Context(), h.Raft, forget); !errors.Is(err, errNotLeader) {
			t.Errorf("where nobody leads: %v", err)
		}
		if err := h.Raft.Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
		if err := f.Propose(t.Context(), h.Raft, forget); !errors.Is(err, fsm.ErrClosed) || !errors.Is(err, raft.ErrRaftShutdown) {
			t.Errorf("after raft was shut down: %v", err)
		}
	})
}

// TestProposerLearnsThatRaftFeedsAnotherFSM: raft has committed the entry, and this FSM was not given it.
func TestProposerLearnsThatRaftFeedsAnotherFSM(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, other := newMachine(), newMachine()
		h := lead(t, other)
		err := f.Propose(t.Context(), h.Raft, []meta.Command{{Init: &meta.Init{Cluster: meta.ClusterID{1}}}})
		if !errors.Is(err, fsm.ErrNotApplied) {
			t.Errorf("proposed: %v", err)
		}
		if other.Ring().Cluster != (meta.ClusterID{1}) {
			t.Error("the other FSM was not given the entry")
		}
		if err := f.Fed(h.Raft); !errors.Is(err, fsm.ErrNotApplied) {
			t.Errorf("afterwards: %v", err)
		}
	})
}
