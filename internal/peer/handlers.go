package peer

import (
	"context"
	"errors"
	"strings"

	"example.com/keyring/internal/meta"
)

// Handlers answer the requests of other servers: one function for each kind, none of them nil. from is the ID
// of the asker as it was authenticated. A handler refuses by returning an error that is a *Refusal; another
// error means that there is no answer.
type Handlers struct {
	Self    string                // the ID of this server
	Cluster func() meta.ClusterID // which fetched keys are bound to

	// Hello says what this server is. To a request without Waiting it returns no Hello.Waiting and no Hello.Unproven, which the
	// asker's build may not know.
	Hello func(from string, q HelloRequest) (*Hello, error)
	// Fetch returns the secrets of those of the keys that a member is given. They are overwritten when they
	// have been sealed.
	Fetch func(ids []meta.KeyID) ([]Secret, error)
	// Report takes the asker's report, whose name is in it.
	Report func(h meta.Hold) error
	// Held says which of the keys this server holds now.
	Held func(ctx context.Context, ids []meta.KeyID) (Held, error)
	// Offer is told of a key that the asker is about to add, and says whether this server holds it now.
	// configuration is as OfferRequest.Configuration.
	Offer func(ctx context.Context, from string, k meta.NewKey, configuration uint64) (Held, error)
	// Removed says which of the keys are removed for good.
	Removed func(ctx context.Context, ids []meta.KeyID) ([]meta.KeyID, error)
	// State says what this server is and knows now.
	State func(ctx context.Context, q StateRequest) (*StateAnswer, error)
	// Leave removes the asker from the cluster, or says which keys would be at risk. by is who has asked it.
	Leave func(ctx context.Context, from, by string) (atRisk string, err error)
}

// Answer answers an encoded request with an encoded answer, which may be a refusal.
func (h Handlers) Answer(ctx context.Context, from string, request []byte) ([]byte, error) {
	q, err := DecodeRequest(request)
	switch {
	case errors.Is(err, ErrVersion):
		return (&Refusal{Code: Unsupported}).Encode()
	case err != nil:
		return (&Refusal{Code: BadRequest}).Encode()
	}
	a, err := h.answer(ctx, from, request, q)
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		return refusal.Encode()
	}
	if err != nil {
		return nil, err
	}
	return a.EncodeFor(q)
}

func (h Handlers) answer(ctx context.Context, from string, request []byte, q Request) (Response, error) {
	switch {
	case q.Hello != nil:
		a, err := h.Hello(from, *q.Hello)
		if err != nil {
			return Response{}, err
		}
		return Response{Hello: a.answer()}, nil
	case q.Fetch != nil:
		a, err := h.sealFetched(from, request, q.Fetch)
		return Response{Fetch: a}, err
	case q.Hold != nil:
		return Response{Hold: &HoldAnswer{}}, h.Report(meta.Hold{
			Server: from, Keystore: meta.KeystoreID(q.Hold.Keystore), Gained: keyIDs(q.Hold.Gained), Lost: keyIDs(q.Hold.Lost),
		})
	case q.Ask != nil:
		held, err := h.Held(ctx, keyIDs(q.Ask.IDs))
		return Response{Ask: held.answer()}, err
	case q.Offer != nil:
		o := q.Offer
		held, err := h.Offer(ctx, from, meta.NewKey{
			ID: meta.KeyID(o.ID), Algorithm: o.Algorithm, Check: meta.CheckValue(o.Check), Created: o.Created,
		}, o.Configuration)
		return Response{Ask: held.answer()}, err
	case q.Removed != nil:
		ids, err := h.Removed(ctx, keyIDs(q.Removed.IDs))
		return Response{Removed: &RemovedAnswer{IDs: wireIDs(ids)}}, err
	case q.State != nil:
		a, err := h.State(ctx, *q.State)
		return Response{State: a}, err
	case q.Leave != nil:
		atRisk, err := h.Leave(ctx, from, q.Leave.By)
		return Response{Leave: &LeaveAnswer{AtRisk: strings.ToValidUTF8(atRisk[:min(len(atRisk), maxAtRisk)], "")}}, err
	}
	return Response{}, &Refusal{Code: Unsupported}
}

func (h Handlers) sealFetched(from string, request []byte, q *FetchRequest) (*FetchAnswer, error) {
	secrets, err := h.Fetch(keyIDs(q.IDs))
	defer func() {
		for _, s := range secrets {
			s.Wipe()
		}
	}()
	if err != nil {
		return nil, err
	}
	a, err := SealKeys(Binding{Cluster: h.Cluster(), Asker: from, Answerer: h.Self}, request, secrets)
	if err != nil {
		return nil, &Refusal{Code: BadRequest}
	}
	return a, nil
}

func (h Held) answer() *AskAnswer { return &AskAnswer{Keystore: ID(h.Keystore), Held: wireIDs(h.Keys)} }

// NewSecret returns a key that is to be sealed. It takes over material.
func NewSecret(id meta.KeyID, check meta.CheckValue, material []byte) Secret {
	return Secret{ID(id), Check(check), material}
}
