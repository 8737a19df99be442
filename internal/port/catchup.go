package port

// A server that has joined, until it has caught up with the cluster that has added it. Before that its raft has
// configurations of the past, from the log or a snapshot. In one of them it may be the only voter, as the server that
// bootstrapped or was restored, and in none of them the leader of today need be a member.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// introduction is what the leader has answered that has added this server.
type introduction struct {
	// Index is up to where raft's log had been committed then: the configuration that has this server is not after it. Zero is
	// from a leader of an older build, which does not say.
	Index uint64 `json:"index"`
	// Servers are the members of that configuration. They count as members until this server has the log up to Index.
	Servers []string `json:"servers" bound:"elements=4096,bytes=255"`
}

var introductionType = bounded.For[introduction](peer.MaxMessage)

// introductionKey is where raft's store has the introduction: a server may end before it has caught up, and must not
// begin again as the only voter.
var introductionKey = []byte("keyring.introduction")

// noElection is longer than a server runs. A follower does not begin an election before.
const noElection = 100 * 365 * 24 * time.Hour

// errCatchingUp is why the introduction still counts.
var errCatchingUp = errors.New("this server has joined, but has not caught up yet")

// HoldElections has a raft that is to be started with conf begin no election before this server has caught up, if it has
// joined. It is called after RaftTransport and Join, if at all: see Attach.
func (p *Port) HoldElections(conf *raft.Config) error {
	in, _, err := p.knownIntroduction()
	if err != nil || in == nil || in.Index == 0 {
		return err
	}
	last, err := p.log.LastIndex()
	if err != nil || last >= in.Index {
		return err
	}
	p.heartbeat, p.election = conf.HeartbeatTimeout, conf.ElectionTimeout
	conf.HeartbeatTimeout, conf.ElectionTimeout = noElection, noElection
	return nil
}

// beginCatchUp is HoldElections for a raft that was started without it, where that is in time: it is called before raft is sent
// anything. A server that has joined before it was started has no configuration. One that was started again may have one in which it
// is the only voter, and may be elected any moment: that is an error.
func (p *Port) beginCatchUp(r *raft.Raft) error {
	in, before, err := p.knownIntroduction()
	if err != nil || in == nil || in.Index == 0 || p.heartbeat > 0 {
		return err
	}
	if r.LastIndex() >= in.Index {
		return nil
	}
	if self, _ := Find(r.GetConfiguration().Configuration().Servers, p.cfg.ID); before && self.ID != "" && self.Suffrage == raft.Voter {
		return errors.New("this server has joined, but ended before it had caught up with the cluster: " +
			"delete raft's log and snapshots here, and let it join again, because it may have voted")
	}
	conf := r.ReloadableConfig()
	p.heartbeat, p.election = conf.HeartbeatTimeout, conf.ElectionTimeout
	conf.HeartbeatTimeout, conf.ElectionTimeout = noElection, noElection
	return r.ReloadConfig(conf)
}

// knownIntroduction returns the introduction, and whether it is from before the last start. It sees to it that it is known after the next
// one.
func (p *Port) knownIntroduction() (in *introduction, before bool, err error) {
	if in = p.introduction.Load(); in != nil {
		return in, p.introducedBefore, p.storeIntroduction(in)
	}
	if in, err = p.storedIntroduction(); in != nil {
		p.introduction.Store(in)
		p.introducedBefore = true
	}
	return in, p.introducedBefore, err
}

// lookWhetherCaughtUp is how often a server that has joined looks whether it has caught up. It may be made the leader soon after, and
// has to have its timeouts by then.
const lookWhetherCaughtUp = 20 * time.Millisecond

// catchUp waits until the introduction counts no longer, or ctx ends.
func (p *Port) catchUp(ctx context.Context) {
	for err := p.endCatchUp(); err != nil; err = p.endCatchUp() {
		pause := time.Second
		if errors.Is(err, errCatchingUp) {
			pause = lookWhetherCaughtUp
		} else {
			p.cfg.Logger.Error("could not let raft begin elections", "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// endCatchUp looks whether the introduction counts no longer, and ends it then. Until then it returns an error. What is in the log up
// to its index is what the cluster has committed, and the last configuration in it counts, committed or not.
func (p *Port) endCatchUp() error {
	in := p.introduction.Load()
	if in == nil || in.Index == 0 {
		return nil
	}
	r := p.raft.Load()
	if r.LastIndex() < in.Index {
		return errCatchingUp
	}
	if err := p.storeIntroduction(nil); err != nil {
		return err
	}
	if p.heartbeat > 0 {
		conf := r.ReloadableConfig()
		conf.HeartbeatTimeout, conf.ElectionTimeout = p.heartbeat, p.election
		if err := r.ReloadConfig(conf); err != nil {
			return err
		}
	}
	p.introduction.Store(nil)
	p.dropNonMembers()
	return nil
}

// ForgetIntroduction takes out of a store of raft's that this server has joined a cluster and not caught up: it is to begin one, which is
// bootstrapped, restored or recovered.
func ForgetIntroduction(store raft.StableStore) error {
	b, err := store.Get(introductionKey)
	if err != nil && err.Error() == "not found" || err == nil && len(b) == 0 {
		return nil
	}
	return store.Set(introductionKey, nil)
}

// introduces reports whether a server counts as a member because the introduction names it.
func (p *Port) introduces(id string) bool {
	in := p.introduction.Load()
	if in == nil || !slices.Contains(in.Servers, id) {
		return false
	}
	return in.Index > 0 || len(p.Members()) == 0
}

// storedIntroduction returns the introduction of a server that has ended before it had caught up, or nil.
func (p *Port) storedIntroduction() (*introduction, error) {
	store, ok := p.log.(raft.StableStore)
	if !ok {
		return nil, nil
	}
	b, err := store.Get(introductionKey)
	if err != nil && err.Error() != "not found" { // as raft itself compares it
		return nil, fmt.Errorf("port: read who has added this server: %w", err)
	}
	if err != nil || len(b) == 0 {
		return nil, nil
	}
	in, err := introductionType.DecodeKnown(b)
	if err != nil {
		return nil, fmt.Errorf("port: read who has added this server: %w", err)
	}
	return &in, nil
}

// storeIntroduction writes the introduction down, or that there is none.
func (p *Port) storeIntroduction(in *introduction) error {
	store, ok := p.log.(raft.StableStore)
	if !ok {
		return nil
	}
	var b []byte
	if in != nil {
		var err error
		if b, err = json.Marshal(in); err != nil {
			return err
		}
	}
	if err := store.Set(introductionKey, b); err != nil {
		return fmt.Errorf("port: write who has added this server: %w", err)
	}
	return nil
}
