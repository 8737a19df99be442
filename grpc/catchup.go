package keyringgrpc

// A server that is to be added, until it has caught up with the cluster. Raft sends it what has been from the
// beginning on, with configurations of the past. In one of them it may be the only voter, if it was in the
// cluster before under its ID, and in none of them the leader of today need be a member.

import (
	"context"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// noElection is longer than a server runs. A follower does not begin an election before.
const noElection = 100 * 365 * 24 * time.Hour

// lookAgain is when a server looks again whether it has caught up, if nothing has changed.
const lookAgain = time.Second

// beginCatchUp has raft begin no election, if it has neither a configuration nor an entry of the log. It is
// called before a server is let in. Until releaseElections, servers of the cluster are let in which are in no
// configuration that this one has.
func (p *Peers) beginCatchUp(r *raft.Raft) error {
	if r.LastIndex() > 0 || len(r.GetConfiguration().Configuration().Servers) > 0 || p.newcomer.Load() {
		return nil
	}
	conf := r.ReloadableConfig()
	p.heartbeat, p.election = conf.HeartbeatTimeout, conf.ElectionTimeout
	conf.HeartbeatTimeout, conf.ElectionTimeout = noElection, noElection
	p.newcomer.Store(true)
	return r.ReloadConfig(conf)
}

// releaseElections waits until this server has caught up with a leader, or the host has bootstrapped a
// cluster here, and has raft begin elections as the host wants it. It returns when that is done, or the Peers
// are closed.
func (p *Peers) releaseElections(r *raft.Raft, k *keyring.Keyring) {
	for looks := 0; p.newcomer.Load(); {
		changed := k.Changed()
		looks++
		if !bootstrappedHere(r) {
			looks = 0
		}
		if looks > 1 || caughtUp(p.life, k) { // raft's configuration comes a moment before it notes that it has heard from the leader
			conf := r.ReloadableConfig()
			conf.HeartbeatTimeout, conf.ElectionTimeout = p.heartbeat, p.election
			if err := r.ReloadConfig(conf); err != nil {
				p.cfg.Logger.Error("could not let raft begin elections", "error", err)
			}
			p.newcomer.Store(false)
			p.sweep(p.wrongMember)
			k.Notify() // who waits for it looks again
			return
		}
		if looks > 0 {
			changed = nil
		}
		select {
		case <-changed:
		case <-time.After(lookAgain):
		case <-p.life.Done():
			return
		}
	}
}

func caughtUp(ctx context.Context, k *keyring.Keyring) bool {
	st, err := k.Status(ctx)
	return err == nil && st.CaughtUp
}

// bootstrappedHere reports whether raft has a configuration that no leader has sent.
func bootstrappedHere(r *raft.Raft) bool {
	return len(r.GetConfiguration().Configuration().Servers) > 0 && r.LastContact().IsZero()
}
