package peer

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"example.com/keyring/internal/meta"
)

// Calls asks other servers. Its methods take and return the keyring's own types; what crosses the wire is
// the messages of this package. It remembers nothing, and is safe for concurrent use.
type Calls struct {
	// Self is the ID of this server.
	Self string

	// Send carries an encoded request to another server and returns the encoded answer. It bounds how
	// long that may take.
	Send func(ctx context.Context, to string, request []byte) ([]byte, error)
}

// Hello is what a server says of itself.
type Hello struct {
	Build    int // the newest version of log entries that its build applies
	Keystore meta.KeystoreID
	Orphans  []meta.NewKey // keys that are in its keystore and not in its FSM, at most MaxOrphans
	Unproven []meta.NewKey // more of them, which are not to be adopted unless an operator asks for it; MaxOrphans with Orphans
	Waiting  *Waiting      // nil if no key files wait
}

// Held lists the keys that a server holds, of those it was asked about, and the keystore in which it holds
// them.
type Held struct {
	Keystore meta.KeystoreID
	Keys     []meta.KeyID
}

// Hello asks a server what it is, in the words of version 1: a server whose key files wait can't say so, and
// may refuse as not ready.
func (c Calls) Hello(ctx context.Context, to string) (*Hello, error) {
	return c.hello(ctx, to, HelloRequest{})
}

// HelloWaiting is Hello, and also asks for the key files that wait, and for unproven orphans. A server of a build that does
// not know of those is asked again without.
func (c Calls) HelloWaiting(ctx context.Context, to string) (*Hello, error) {
	for _, q := range []HelloRequest{{Waiting: true, Unproven: true}, {Waiting: true}} {
		if h, err := c.hello(ctx, to, q); !Refused(err, Unsupported) {
			return h, err
		}
	}
	return c.Hello(ctx, to)
}

// HelloOrphan is HelloWaiting of which Orphans or Unproven has that key alone, or neither. A server of a build that does
// not look for one tells of its first MaxOrphans.
func (c Calls) HelloOrphan(ctx context.Context, to string, id meta.KeyID) (*Hello, error) {
	h, err := c.hello(ctx, to, HelloRequest{Waiting: true, Unproven: true, Orphan: ID(id)})
	if Refused(err, Unsupported) {
		return c.HelloWaiting(ctx, to)
	}
	return h, err
}

func (c Calls) hello(ctx context.Context, to string, q HelloRequest) (*Hello, error) {
	a, err := ask[HelloAnswer](ctx, c, to, Request{Hello: &q})
	if err != nil {
		return nil, err
	}
	return a.hello(), nil
}

// Held asks a server which of the keys it holds now: on disk, not by its records. It takes 1 to MaxIDs keys.
func (c Calls) Held(ctx context.Context, to string, ids []meta.KeyID) (Held, error) {
	return c.held(ctx, to, Request{Ask: &AskRequest{IDs: wireIDs(ids)}})
}

// Offer tells a server of a key that this one, which leads, is about to add. The answer says whether the other
// server holds it now. configuration is as OfferRequest.Configuration.
func (c Calls) Offer(ctx context.Context, to string, k meta.NewKey, configuration uint64) (Held, error) {
	return c.held(ctx, to, Request{Offer: &OfferRequest{
		ID: ID(k.ID), Algorithm: k.Algorithm, Check: Check(k.Check), Created: k.Created, Configuration: configuration,
	}})
}

func (c Calls) held(ctx context.Context, to string, q Request) (Held, error) {
	a, err := ask[AskAnswer](ctx, c, to, q)
	if err != nil {
		return Held{}, err
	}
	return Held{meta.KeystoreID(a.Keystore), keyIDs(a.Held)}, nil
}

// Fetch asks a server for 1 to MaxFetch keys, and hands the material of each key that has come to take, which has to
// find out whether it is the right one. The material is overwritten when take returns. A key that the server
// does not hold is no error. cluster is called when the answer has come: the server may learn the ID of its cluster
// meanwhile.
func (c Calls) Fetch(ctx context.Context, from string, cluster func() meta.ClusterID, ids []meta.KeyID,
	take func(id meta.KeyID, material []byte)) error {
	pull, err := NewFetch(wireIDs(ids))
	if err != nil {
		return err
	}
	a, err := exchange[FetchAnswer](ctx, c, from, pull.Request())
	if err != nil {
		return err
	}
	secrets, err := pull.Open(Binding{Cluster: cluster(), Asker: c.Self, Answerer: from}, a)
	if err != nil {
		return fmt.Errorf("fetch from %s: %w", from, err)
	}
	for _, s := range secrets {
		take(meta.KeyID(s.ID), s.Material)
		s.Wipe()
	}
	return nil
}

// Report tells the leader which keys this server has come to hold, and which it no longer holds. h.Server is
// not sent: the leader knows who reports.
func (c Calls) Report(ctx context.Context, leader string, h meta.Hold) error {
	_, err := ask[HoldAnswer](ctx, c, leader, Request{Hold: &HoldRequest{
		Keystore: ID(h.Keystore), Gained: wireIDs(h.Gained), Lost: wireIDs(h.Lost),
	}})
	return err
}

// Removed asks the leader which of the keys are removed for good: the time to undo their removal is over. It
// takes 1 to MaxIDs keys.
func (c Calls) Removed(ctx context.Context, leader string, ids []meta.KeyID) ([]meta.KeyID, error) {
	a, err := ask[RemovedAnswer](ctx, c, leader, Request{Removed: &RemovedRequest{IDs: wireIDs(ids)}})
	if err != nil {
		return nil, err
	}
	return keyIDs(a.IDs), nil
}

// State asks a server what it is and knows now. A build that does not know the question refuses it as
// Unsupported.
func (c Calls) State(ctx context.Context, to string, q StateRequest) (*StateAnswer, error) {
	return ask[StateAnswer](ctx, c, to, Request{State: &q})
}

// StatePolicies is State, and also asks for the policies. A server of a build that does not know of those is asked
// again without.
func (c Calls) StatePolicies(ctx context.Context, to string) (*StateAnswer, error) {
	a, err := c.State(ctx, to, StateRequest{Policies: true})
	if Refused(err, Unsupported) {
		return c.State(ctx, to, StateRequest{})
	}
	return a, err
}

// Leave asks the leader to remove this server from the cluster. by is who wants that. If it was not removed, the answer says
// which keys would be at risk.
func (c Calls) Leave(ctx context.Context, leader, by string) (atRisk string, err error) {
	a, err := ask[LeaveAnswer](ctx, c, leader, Request{Leave: &LeaveRequest{By: by}})
	if err != nil {
		return "", err
	}
	return a.AtRisk, nil
}

func ask[A Answer](ctx context.Context, c Calls, to string, q Request) (*A, error) {
	request, err := q.Encode()
	if err != nil {
		return nil, err
	}
	return exchange[A](ctx, c, to, request)
}

func exchange[A Answer](ctx context.Context, c Calls, to string, request []byte) (*A, error) {
	b, err := c.Send(ctx, to, request)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", to, err)
	}
	a, err := DecodeAnswer[A](b)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", to, err)
	}
	return a, nil
}

// All asks all servers at once and returns the answers by server, without those that failed. It stops asking
// as soon as enough, unless it is nil, says that the answers so far are enough. It returns only when every
// goroutine that it started has ended, so ask has to end with its context.
func All[A any](ctx context.Context, servers []string,
	ask func(ctx context.Context, server string) (A, error), enough func(answers map[string]A) bool) map[string]A {
	ctx, cancel := context.WithCancel(ctx)
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

// hello returns the answer in the keyring's own types.
func (a *HelloAnswer) hello() *Hello {
	h := &Hello{Build: a.Build, Keystore: meta.KeystoreID(a.Keystore), Waiting: a.Waiting}
	for _, o := range a.Orphans {
		k := meta.NewKey{
			ID: meta.KeyID(o.ID), Algorithm: o.Algorithm, Public: o.Public, Check: meta.CheckValue(o.Check), Created: o.Created,
		}
		if o.Unproven {
			h.Unproven = append(h.Unproven, k)
		} else {
			h.Orphans = append(h.Orphans, k)
		}
	}
	return h
}

// answer returns the message that says the same.
func (h *Hello) answer() *HelloAnswer {
	a := &HelloAnswer{Build: h.Build, Keystore: ID(h.Keystore), Waiting: h.Waiting}
	for i, k := range slices.Concat(h.Orphans, h.Unproven) {
		a.Orphans = append(a.Orphans, Orphan{
			ID: ID(k.ID), Algorithm: k.Algorithm, Public: k.Public, Check: Check(k.Check), Created: k.Created.UTC(),
			Unproven: i >= len(h.Orphans),
		})
	}
	return a
}

func wireIDs(ids []meta.KeyID) []ID {
	var out []ID
	for _, id := range ids {
		out = append(out, ID(id))
	}
	return out
}

func keyIDs(ids []ID) []meta.KeyID {
	var out []meta.KeyID
	for _, id := range ids {
		out = append(out, meta.KeyID(id))
	}
	return out
}
