package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// leader is the goroutine that does what plan says while this server leads. All it
// remembers is of its term; what it has begun, a new leader finishes from the ring.
type leader struct {
	*Keyring
	term    uint64
	greeted bool
	orphans []peer.Orphan
	probes  map[KeyID]plan.Probe
	retry   time.Time // see plan.Situation
	failed  int       // failures in a row
}

// lead runs until Close.
func (k *Keyring) lead() {
	l := &leader{Keyring: k}
	for {
		changed := k.fsm.changed.wait()
		timer := time.NewTimer(l.step())
		select {
		case <-changed:
		case <-timer.C:
		case turn := <-k.turns:
			turn()
		case <-k.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// alongActivations runs do between two steps of the leader's loop, never during one: what
// it finds out about who holds which key no activation overtakes.
func (k *Keyring) alongActivations(ctx context.Context, do func(context.Context) error) error {
	ctx, done, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	result := make(chan error, 1)
	select {
	case k.turns <- func() { result <- do(ctx) }:
		return <-result
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// idle is how long a loop waits when no time is known: a safety net, since changes wake it.
const idle = time.Hour

// step does everything that can be done now and returns how long there is nothing to do.
func (l *leader) step() time.Duration {
	if !l.begin() {
		return idle
	}
	for l.ctx.Err() == nil {
		ring, holds := project(l.fsm.ring.Load(), l.reports.take())
		s := l.situation(ring)
		a := plan.Next(ring, s)
		var err error
		switch {
		case a.Kind != plan.Wait && a.Kind != plan.Nothing:
			err = l.act(a, ring, s, holds)
		case len(holds) > 0:
			err = l.propose(holds)
		case a.Kind == plan.Wait:
			return max(0, a.At.Sub(s.Now))
		default:
			return idle
		}
		if errors.Is(err, ErrNotLeader) || errors.Is(err, ErrClosed) {
			return idle // what was not done, the next leader does
		}
	}
	return idle
}

// act does one thing and sees to it that what fails is not tried again at once.
func (l *leader) act(a plan.Action, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	err := l.do(a, ring, s, holds)
	if err == nil {
		l.failed = 0
		return nil
	}
	l.retry = now().Add(plan.Backoff(min(l.failed, 5), mathrand.Float64()))
	l.failed++
	l.cfg.Logger.Warn("leader's next step", "step", a.Kind, "key", a.Key, "error", err)
	return err
}

// begin reports whether this server leads, with the barrier of its term applied: from then
// on the ring has all that earlier leaders committed, and this one may seal and act.
func (l *leader) begin() bool {
	term := l.raft.CurrentTerm()
	if l.raft.State() != raft.Leader {
		l.reports.take()
		return false
	}
	if l.Keyring.term.Load() == term && l.term == term {
		return true
	}
	if err := l.raft.Barrier(proposeTimeout).Error(); err != nil || !l.leads(term) {
		return false
	}
	*l = leader{Keyring: l.Keyring, term: term, probes: map[KeyID]plan.Probe{}}
	l.Keyring.term.Store(term)
	l.fsm.changed.notify()
	return true
}

// project is the ring as it will be once the reports are in the log, and the commands that
// bring them there. Reports that tell nothing new are left out.
func project(ring *meta.Ring, holds []meta.Hold) (*meta.Ring, []meta.Command) {
	var cmds []meta.Command
	for _, h := range holds {
		c := meta.Command{Hold: &h}
		next, err := ring.Apply(math.MaxUint64, []meta.Command{c}) // later than all that is known
		if err != nil || sameHolds(ring, next) {
			continue
		}
		ring, cmds = next, append(cmds, c)
	}
	return ring, cmds
}

// sameHolds reports whether a Hold changed nothing: it replaces every key it touches.
func sameHolds(a, b *meta.Ring) bool {
	return slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Keys, b.Keys)
}

func (l *leader) propose(cmds []meta.Command, more ...meta.Command) error {
	return propose(l.ctx, l.raft, slices.Concat(cmds, more)...)
}

func (l *leader) situation(ring *meta.Ring) plan.Situation {
	return plan.Situation{
		Now: now(), Policy: l.cfg.policy(), Voters: voters(l.raft), Servers: servers(l.raft),
		Has: l.held(ring), Greeted: l.greeted, Orphans: len(l.orphans), Probes: l.probes, Retry: l.retry,
	}
}

// do is the only place where the leader acts.
func (l *leader) do(a plan.Action, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	switch a.Kind {
	case plan.Forget:
		return l.propose(holds, meta.Command{Forget: &meta.Forget{Servers: a.Servers}})
	case plan.Greet:
		return l.greet(s) // there is nothing to hold yet
	case plan.Found:
		return l.found(ring, holds)
	case plan.Create:
		if err := l.deliver(holds); err != nil {
			return err
		}
		_, err := l.create(l.ctx, meta.Add{Publish: a.At, Scheduled: a.Scheduled})
		return err
	case plan.Ask:
		return l.decide(a.Key, ring, s, holds)
	}
	return fmt.Errorf("unknown step %s", a.Kind)
}

func (l *leader) deliver(holds []meta.Command) error {
	if len(holds) == 0 {
		return nil
	}
	return l.propose(holds)
}

// greet asks every server what it is and which keys it has that the ring does not know. The
// first command of a cluster waits until all have answered, for an older build would not
// know what to do with it; servers that are all of this build need not be waited for.
func (l *leader) greet(s plan.Situation) error {
	request, err := peer.Request{Hello: &peer.HelloRequest{}}.Encode()
	if err != nil {
		return err
	}
	answers := askAll(l.ctx, s.Servers, func(ctx context.Context, server string) (*peer.HelloAnswer, error) {
		if server == string(l.cfg.ID) {
			return l.hello(), nil
		}
		return call[peer.HelloAnswer](ctx, l.Keyring, server, request)
	}, nil)
	var unheard []string
	l.orphans = nil
	for _, server := range s.Servers {
		a := answers[server]
		if a == nil || a.Build < meta.Version {
			unheard = append(unheard, server)
			continue
		}
		l.orphans = append(l.orphans, a.Orphans...)
	}
	l.blocked.waitFor(unheard)
	if len(unheard) > 0 && !l.cfg.alone {
		return fmt.Errorf("waiting for %q to answer before the first command", unheard)
	}
	l.greeted = true
	return nil
}

// found names the cluster and adopts the orphans: keys that open data and verify nothing.
func (l *leader) found(ring *meta.Ring, holds []meta.Command) error {
	var cmds []meta.Command
	if ring.Cluster == (meta.ClusterID{}) {
		var id meta.ClusterID
		rand.Read(id[:]) // never fails
		cmds = append(cmds, meta.Command{Init: &meta.Init{Cluster: id}})
	}
	seen := map[peer.ID]bool{}
	for _, o := range l.orphans {
		if seen[o.ID] || ring.Key(KeyID(o.ID)) != nil || ring.WasRemoved(KeyID(o.ID)) {
			continue
		}
		seen[o.ID] = true
		cmds = append(cmds, meta.Command{Adopt: &meta.Adopt{
			Key: meta.NewKey{
				ID: KeyID(o.ID), Algorithm: o.Algorithm, Public: o.Public, Check: meta.CheckValue(o.Check), Created: o.Created,
			},
			DataOnly: true, Time: now(),
		}})
	}
	// There may be more orphans than one answer holds: ask again before the first key.
	l.greeted, l.orphans = len(seen) == 0, nil
	if len(cmds)+len(holds) == 0 {
		return nil
	}
	return l.propose(slices.Concat(cmds, holds))
}

// create makes a key, its own file first: a crash here leaves an orphan file, never a key
// that nobody holds. Then it proposes the key together with its own hold, while the other
// servers already fetch it.
func (k *Keyring) create(ctx context.Context, add meta.Add) (KeyID, error) {
	secret, err := nks.Generate(k.cfg.Tokens.Algorithm)
	if err != nil {
		return KeyID{}, err
	}
	defer secret.Wipe()
	public, err := secret.Public(k.cfg.Tokens.Algorithm)
	if err != nil {
		return KeyID{}, err
	}
	id := newKeyID()
	add.Key = meta.NewKey{
		ID: id, Algorithm: k.cfg.Tokens.Algorithm, Public: public,
		Check: secret.Check(id, k.cfg.Tokens.Algorithm), Created: now(),
	}
	err = k.store.put(ctx, arrival{id, add.Key.Algorithm, add.Key.Check, add.Key.Created, secret})[0]
	if err != nil {
		return KeyID{}, err
	}
	added := make(chan struct{})
	defer close(added)
	k.offer(add.Key, added)
	hold := meta.Hold{Server: string(k.cfg.ID), Keystore: k.store.id, Gained: []KeyID{id}}
	return id, propose(ctx, k.raft, meta.Command{Add: &add}, meta.Command{Hold: &hold})
}

// offer tells the other servers of a key before raft does: an idle leader's followers learn
// of a commit two writes of their logs after it. Who has taken it up counts as a holder once
// the key is added. A server that does not answer has it by replication.
func (k *Keyring) offer(key meta.NewKey, added <-chan struct{}) {
	request, err := peer.Request{Offer: &peer.OfferRequest{
		ID: peer.ID(key.ID), Algorithm: key.Algorithm, Check: peer.Check(key.Check), Created: key.Created,
	}}.Encode()
	if err != nil {
		k.cfg.Logger.Error("offer", "key", key.ID, "error", err)
		return
	}
	for _, s := range servers(k.raft) {
		if s == string(k.cfg.ID) {
			continue
		}
		k.loops.Go(func() {
			a, err := call[peer.AskAnswer](k.ctx, k, s, request)
			if err != nil || len(a.Held) == 0 {
				return
			}
			select {
			case <-added:
				k.takeReport(meta.Hold{Server: s, Keystore: meta.KeystoreID(a.Keystore), Gained: []KeyID{key.ID}})
			case <-k.ctx.Done():
			}
		})
	}
}

// newKeyID draws a random UUID, version 4.
func newKeyID() KeyID {
	var id KeyID
	rand.Read(id[:]) // never fails
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// decide asks live who holds a prepublished key, then activates it, drops it, or waits.
// Answers count only if neither a restore of the FSM nor a change of the configuration came
// in between: either can take away what they speak of.
func (l *leader) decide(id KeyID, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	restores := l.fsm.restores.Load()
	enough := func(answers map[string]plan.Answer) bool { return plan.Judge(ring, id, s, answers).Activate }
	answers := l.ask(l.ctx, s.Servers, []KeyID{id}, enough)
	if restores != l.fsm.restores.Load() || !slices.Equal(s.Voters, voters(l.raft)) || !slices.Equal(s.Servers, servers(l.raft)) {
		return l.deliver(holds) // and ask anew
	}
	v := plan.Judge(ring, id, s, answers)
	var err error
	switch {
	case v.Activate:
		err = l.propose(holds, meta.Command{Activate: &meta.Activate{ID: id, Voters: s.Voters, Confirmed: v.Confirmed, Time: now()}})
	case v.Drop:
		l.cfg.Logger.Warn("no server has the new key: dropping it", "key", id)
		err = l.propose(holds, meta.Command{Remove: &meta.Remove{ID: id, From: meta.StatePrepublished, Time: now()}})
	default:
		err = l.deliver(holds)
	}
	if k := l.fsm.ring.Load().Key(id); k != nil && k.State == meta.StatePrepublished {
		l.probes[id] = l.probes[id].Again(k, v, now(), mathrand.Float64())
		l.blocked.wait(id, len(v.Confirmed), len(answers), len(s.Servers))
	} else {
		delete(l.probes, id)
		l.blocked.clear(id)
	}
	return err
}

// ask asks the servers live which of the keys they hold, and stops when the answers are enough.
func (k *Keyring) ask(ctx context.Context, servers []string, ids []KeyID, enough func(map[string]plan.Answer) bool) map[string]plan.Answer {
	question := &peer.AskRequest{IDs: toPeer(ids)}
	request, err := peer.Request{Ask: question}.Encode()
	if err != nil {
		k.cfg.Logger.Error("live question", "error", err)
		return nil
	}
	return askAll(ctx, servers, func(ctx context.Context, server string) (plan.Answer, error) {
		if server == string(k.cfg.ID) {
			a := k.serveAsk(question)
			return plan.Answer{Keystore: k.store.id, Held: fromPeer(a.Held)}, nil
		}
		a, err := call[peer.AskAnswer](ctx, k, server, request)
		if err != nil {
			return plan.Answer{}, err
		}
		return plan.Answer{Keystore: meta.KeystoreID(a.Keystore), Held: fromPeer(a.Held)}, nil
	}, enough)
}

// askAll asks all servers at once and returns the answers by server, without those that
// failed. It stops when enough says so, and waits for every goroutine it started.
func askAll[A any](ctx context.Context, servers []string, ask func(context.Context, string) (A, error), enough func(map[string]A) bool) map[string]A {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		server string
		a      A
		err    error
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ch := make(chan answer, len(servers))
	for _, s := range servers {
		wg.Go(func() {
			a, err := ask(ctx, s)
			ch <- answer{s, a, err}
		})
	}
	answers := map[string]A{}
	for range servers {
		if a := <-ch; a.err == nil {
			answers[a.server] = a.a
			if enough != nil && enough(answers) {
				break
			}
		}
	}
	return answers
}

// RotateOptions says how to rotate. The zero value makes a new key active as soon as a
// majority of the voters holds it.
type RotateOptions struct {
	// Publish is when the new key is to become active; it is prepublished until then, so
	// that verifiers learn of it. Zero, or a time that has passed, means at once.
	Publish time.Time
}

// Rotate makes a new key. It returns when the key is active, or, with Publish set, when it
// is prepublished and held by a majority of the voters. If ctx ends first the error matches
// ErrNotDurable: the key stays prepublished, and the leader goes on with it. Leader only. It
// may be called again, and side by side.
func (k *Keyring) Rotate(ctx context.Context, o RotateOptions) (Key, error) {
	ctx, done, err := k.enter(ctx)
	if err != nil {
		return Key{}, err
	}
	defer done()
	if err := k.mayRotate(); err != nil {
		return Key{}, err
	}
	add := meta.Add{}
	if o.Publish.After(time.Now()) {
		add.Publish = o.Publish.UTC().Round(0)
	}
	id, err := k.create(ctx, add)
	if err != nil {
		return Key{}, fmt.Errorf("rotate: %w", err)
	}
	return k.awaitKey(ctx, id, add.Publish.IsZero())
}

// mayRotate reports whether this server is a leader that is ready.
func (k *Keyring) mayRotate() error {
	if k.raft.State() != raft.Leader {
		return notLeader(k.raft)
	}
	if !k.leads(k.term.Load()) || k.fsm.ring.Load().Active() == nil {
		return ErrNotReady
	}
	return nil
}

// awaitKey waits until the new key is active or, if it need not be, held by a majority.
func (k *Keyring) awaitKey(ctx context.Context, id KeyID, active bool) (Key, error) {
	for {
		changed := k.fsm.changed.wait()
		m := k.fsm.ring.Load().Key(id)
		switch {
		case m == nil && k.fsm.ring.Load().WasRemoved(id):
			return Key{}, fmt.Errorf("rotate: key %s was dropped: %w", id, ErrUnknownKey)
		case m == nil: // on a follower, it is on its way
		case m.State != meta.StatePrepublished, !active && plan.Majority(voters(k.raft), m.Holders):
			return publicKey(m), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err := context.Cause(ctx); errors.Is(err, ErrClosed) {
				return Key{}, err
			}
			return Key{ID: id}, fmt.Errorf("rotate: key %s: %w: %w", id, ErrNotDurable, context.Cause(ctx))
		}
	}
}

// CheckMembers reports whether the raft configuration can be changed to these voters
// without risk to a key: each key that something may be sealed under must be held, asked
// live, by a majority of them. The error names the keys for which it is not so. A host that
// changes its configuration by itself calls it on the leader before each change, and makes
// no two changes at a time.
func (k *Keyring) CheckMembers(ctx context.Context, voters []raft.ServerID) error {
	ctx, done, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	if len(voters) == 0 {
		return errors.New("check members: no voters")
	}
	var ids []string
	for _, v := range voters {
		ids = append(ids, string(v))
	}
	ring := k.fsm.ring.Load()
	answers := k.askAbout(ctx, ids, ring.Keys)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if unsafe := plan.Unsafe(ring, ids, answers); len(unsafe) > 0 {
		return fmt.Errorf("check members %q: %w: no majority of them holds %d keys, %s the first of them",
			ids, ErrNotDurable, len(unsafe), unsafe[0])
	}
	return nil
}

// askAbout asks the servers live about any number of keys.
func (k *Keyring) askAbout(ctx context.Context, servers []string, keys []*meta.Key) map[string]plan.Answer {
	answers := map[string]plan.Answer{}
	for batch := range slices.Chunk(keys, reportBatch) {
		var ids []KeyID
		for _, key := range batch {
			ids = append(ids, key.ID)
		}
		for server, a := range k.ask(ctx, servers, ids, nil) {
			a.Held = append(answers[server].Held, a.Held...)
			answers[server] = a
		}
	}
	return answers
}
