package keyring

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// confirmTimeout is for one question to the leader that it answers after confirmLeads: its FSM may have
// much to apply before.
const confirmTimeout = 30 * time.Second

// confirming has a majority confirm that this server leads. All who ask before a confirmation begins share
// it, and there is one at a time: whoever asks often has no more entries written than that.
type confirming struct {
	mu      sync.Mutex // guards below
	running bool
	next    *confirmation // of those who ask now; nil if nobody does
}

// confirmation is one entry in raft's log. err is for whoever has waited for done.
type confirmation struct {
	done chan struct{}
	err  error
}

// confirmLeads returns nil once a majority of the voters has taken an entry from this server that it wrote
// after the call, and its FSM has had all before that entry: no other server has led and got anything
// committed that this one had not applied then. raft's VerifyLeader won't do, for it counts the answers to
// heartbeats that were sent before the call. It ends with ctx.
//
// Only for what Close waits for: a call that entered, or one of the loops.
func (k *Keyring) confirmLeads(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c := k.joinConfirmation()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// joinConfirmation returns the confirmation that has yet to begin.
func (k *Keyring) joinConfirmation() *confirmation {
	k.confirming.mu.Lock()
	defer k.confirming.mu.Unlock()
	if k.confirming.next == nil {
		k.confirming.next = &confirmation{done: make(chan struct{})}
	}
	c := k.confirming.next
	if !k.confirming.running {
		k.confirming.running = true
		k.loops.Go(k.confirmAll)
	}
	return c
}

// confirmAll runs until nobody asks any more. One who does not wait any more is asked for all the same:
// others may have joined.
func (k *Keyring) confirmAll() {
	for {
		k.confirming.mu.Lock()
		c := k.confirming.next
		k.confirming.next = nil
		k.confirming.running = c != nil
		k.confirming.mu.Unlock()
		if c == nil {
			return
		}
		c.err = k.barrierTaken()
		close(c.done)
	}
}

// barrierTaken waits for a barrier. That raft does not take it for a while, because the FSM has much to
// apply, is no answer.
func (k *Keyring) barrierTaken() error {
	for {
		err := k.raft.Barrier(proposeTimeout).Error()
		if err == nil {
			return nil
		}
		if !errors.Is(err, raft.ErrEnqueueTimeout) || k.ctx.Err() != nil {
			return outcome(k.raft, err)
		}
	}
}

// sendToLeader carries to the leader what it answers after confirmLeads, for Keyring.toLeader. It ends when that
// server no longer leads.
func (k *Keyring) sendToLeader(ctx context.Context, leader string, request []byte) ([]byte, error) {
	ctx, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end()
	watching.Go(func() { k.whileLeads(ctx, raft.ServerID(leader), end) })
	return k.sendWithin(ctx, confirmTimeout, leader, request)
}

// whileLeads ends what waits for a leader that leads no more: it may never answer, and this server may
// lead meanwhile.
func (k *Keyring) whileLeads(ctx context.Context, leader raft.ServerID, end context.CancelFunc) {
	for {
		changed := k.fsm.bell.wait()
		if _, now := k.raft.LeaderWithID(); now != leader {
			end()
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
