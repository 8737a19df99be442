package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"example.com/keyring"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

const (
	rotateTime = 30 * time.Second // a key is to be active by then
	maxPublish = 30 * 24 * time.Hour
	peerTime   = time.Second // for another server's status
	watchPace  = 20 * time.Millisecond
)

// rotateRequest asks for a new key.
type rotateRequest struct {
	Full        bool            `json:"full,omitempty"`
	Revoke      []keyring.KeyID `json:"revoke,omitempty"`
	Compromised bool            `json:"compromised,omitempty"` // all other keys are revoked, and go
	Publish     string          `json:"publish,omitempty"`     // how long the JWKS has the key before it signs: 5m
}

// options is what is asked for, now. The error says what is wrong with it.
func (q rotateRequest) options(now time.Time) (keyring.RotateOptions, error) {
	o := keyring.RotateOptions{Full: q.Full, Revoke: q.Revoke, Compromised: q.Compromised}
	if q.Publish == "" {
		return o, nil
	}
	wait, err := time.ParseDuration(q.Publish)
	switch {
	case err != nil || wait <= 0 || wait > maxPublish:
		return o, fmt.Errorf("publish: %.40q is no time from 1ns to %v, such as 5m", q.Publish, maxPublish)
	case q.Compromised:
		return o, errors.New("compromised does not go with publish: until then the key that somebody else has would sign")
	}
	o.Publish = now.Add(wait)
	return o, nil
}

// status is a server as it sees itself.
type status struct {
	ID      raft.ServerID   `json:"id"`
	Leader  raft.ServerID   `json:"leader,omitempty"`
	Ready   bool            `json:"ready"`
	Index   uint64          `json:"index"` // of the last log entry about secrets here
	Secrets int             `json:"secrets"`
	Voters  []string        `json:"voters,omitempty"`  // as far as it knows; the leader does
	Members []raft.ServerID `json:"members,omitempty"` // likewise, with those that have no vote

	Addrs map[raft.ServerID]string `json:"addrs,omitempty"` // of the members, as raft has them
	Every string                   `json:"every,omitempty"` // of serve: 720h0m0s, or default

	Keys     []keyStatus `json:"keys,omitempty"`
	Missing  []string    `json:"missing,omitempty"`
	Rekeying []rekeying  `json:"rekeying,omitempty"` // on the leader
	Problems []string    `json:"problems,omitempty"`

	Causes       []keyring.Problem    `json:"causes,omitempty"` // the same problems
	KEKs         []keyring.KEKStatus  `json:"keks,omitempty"`
	NextRotation time.Time            `json:"nextRotation,omitzero"` // zero if keys rotate only by hand
	LastBackup   keyring.LastBackup   `json:"lastBackup,omitzero"`
	BackupSigner keyring.BackupSigner `json:"backupSigner,omitzero"` // of the backups of now
}

type keyStatus struct {
	ID        string          `json:"id"`
	State     keyring.State   `json:"state"`
	Algorithm string          `json:"algorithm"`
	Since     time.Time       `json:"since"` // when it was made active, or made
	Index     uint64          `json:"index"` // of the log entry that changed it last
	Holders   []raft.ServerID `json:"holders,omitempty"`
	Secrets   int             `json:"secrets"` // sealed under it
}

type rekeying struct {
	Key      string   `json:"key"`
	Moved    int      `json:"moved"`
	Left     int      `json:"left"`
	Poisoned []string `json:"poisoned,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// leads reports whether it is a leader's own.
func (s status) leads() bool { return s.Leader != "" && s.Leader == s.ID }

// hasLeft reports whether a server is no member by the leader, whose status it is.
func (s status) hasLeft(id raft.ServerID) bool {
	return s.leads() && len(s.Members) > 0 && !slices.Contains(s.Members, id)
}

// knows reports whether the server has heard of the key. One that takes in nothing new has not heard of new keys.
func (s status) knows(key string) bool {
	return slices.ContainsFunc(s.Keys, func(k keyStatus) bool { return k.ID == key })
}

// answer is what a server has answered: its status, or why it has none.
type answer struct {
	status
	Error string `json:"error,omitempty"`
	Hangs bool   `json:"hangs,omitempty"` // it has taken the connection, and has not answered
}

// operate adds what is for operators.
func (s *server) operate(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/keys", s.serve(s.people(s.rotate)))
	mux.HandleFunc("DELETE /v1/keys/{id}", s.serve(s.people(s.remove), "force", "now"))
	mux.HandleFunc("POST /v1/servers", s.serve(s.people(s.addServer)))
	mux.HandleFunc("DELETE /v1/servers/{id}", s.serve(s.people(s.removeServer), "force"))
	mux.HandleFunc("POST /v1/tokens", s.serve(s.people(s.joinToken)))
	mux.HandleFunc("GET /v1/tokens", s.serve(s.people(s.joinTokens)))
	mux.HandleFunc("DELETE /v1/tokens/{id}", s.serve(s.people(s.withdrawToken)))
	mux.HandleFunc("GET /v1/status", s.serve(s.people(s.status), "consistent"))
	mux.HandleFunc("GET /v1/watch", s.watch)
	mux.HandleFunc("POST /v1/backup", s.backup)
	mux.HandleFunc("POST /v1/backup/{sha256}", s.serve(s.people(s.confirmBackup)))
	mux.HandleFunc("GET /v1/cluster", s.serve(s.people(s.view)))
	mux.HandleFunc("POST /v1/keys/{id}/adopt", s.serve(s.people(s.adopt)))
	mux.HandleFunc("POST /v1/rewrap", s.serve(s.people(s.rewrap)))
	servePage(mux)
}

// rotate makes a new key. The node asks the leader by itself.
func (s *server) rotate(r *http.Request) (any, error) {
	var in rotateRequest
	if err := read(r, &in); err != nil {
		return nil, err
	}
	options, err := in.options(time.Now())
	if err != nil {
		return nil, badRequest{err}
	}
	if err := s.mayRotate(in.Revoke); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(keyring.WithActor(r.Context(), actor(r)), rotateTime)
	defer cancel()
	key, err := s.node.Rotate(ctx, options)
	if err != nil {
		// Also if somebody else leads now: a leader that is lost in the middle may have made the key, and
		// the next one would make another.
		return nil, unknown{fmt.Errorf("there may be a new key all the same: %w", err)}
	}
	return keyStatus{ID: key.ID.String(), State: key.State, Algorithm: key.Algorithm, Since: key.Activated, Index: key.ModifyIndex, Holders: key.Holders}, nil
}

// mayRotate says what is in the way of a rotation while it certainly has had no effect: before the node
// is asked.
func (s *server) mayRotate(revoke []keyring.KeyID) error {
	if s.node.Leader() == "" {
		return keyring.NotLeaderError{}
	}
	keys := s.node.Keyring().Keys()
	for _, id := range revoke {
		if !slices.ContainsFunc(keys, func(k keyring.Key) bool { return k.ID == id }) {
			return fmt.Errorf("revoke: %w %s", keyring.ErrUnknownKey, id)
		}
	}
	return nil
}

// remove removes a key: when nothing is sealed under it any more, or by ?force at once and with all
// that is. The node asks the leader by itself. It may be done twice, so it needs no unknown.
func (s *server) remove(r *http.Request) (any, error) {
	id, err := keyring.ParseKeyID(r.PathValue("id"))
	if err != nil {
		return nil, badRequest{err}
	}
	force, err := flagOf(r, "force")
	if err != nil {
		return nil, err
	}
	now, err := flagOf(r, "now")
	if err != nil {
		return nil, err
	}
	o := keyring.RemoveOptions{Force: force, Now: now}
	if err := s.node.Remove(keyring.WithActor(r.Context(), actor(r)), id, o); err != nil {
		// The keyring has no error to tell it by. Before the leader is asked, this server may not yet know that
		// there is another active key.
		if slices.ContainsFunc(s.node.Keyring().Keys(), func(k keyring.Key) bool { return k.ID == id && k.State == keyring.StateActive }) {
			err = conflict{err}
		}
		return nil, err
	}
	return map[string]string{"removed": id.String()}, nil
}

// adopt takes in the key of a file that the keyring does not know. Only the leader does.
func (s *server) adopt(r *http.Request) (any, error) {
	id, err := keyring.ParseKeyID(r.PathValue("id"))
	if err != nil {
		return nil, badRequest{err}
	}
	ctx, cancel := context.WithTimeout(keyring.WithActor(r.Context(), actor(r)), rotateTime)
	defer cancel()
	return map[string]string{"adopted": id.String()}, s.node.Keyring().Adopt(ctx, id)
}

// rewrap has this server's key files wrapped under its present KEKs alone.
func (s *server) rewrap(r *http.Request) (any, error) {
	return map[string]raft.ServerID{"rewrapped": s.id}, s.node.Keyring().Rewrap(r.Context())
}

// status is how this server is. With ?consistent it is the leader's, and not from before the request.
func (s *server) status(r *http.Request) (any, error) {
	consistent, err := flagOf(r, "consistent")
	if err != nil {
		return nil, err
	}
	if consistent {
		if err := s.isCurrent(r.Context()); err != nil {
			return nil, err
		}
	}
	return s.own(r.Context())
}

// isCurrent returns when this server, which leads, has everything that was put before the call.
func (s *server) isCurrent(ctx context.Context) error {
	if _, err := s.apply(ctx, command{}); !errors.Is(err, records.ErrNotFound) {
		return err
	}
	return nil
}

func (s *server) own(ctx context.Context) (status, error) {
	st, err := s.node.Keyring().Status(ctx)
	if err != nil {
		return status{}, err
	}
	now := s.store.View()
	out := status{
		ID: st.ID, Leader: st.Leader, Ready: st.Ready, Index: now.Index(), Secrets: now.Len(), Causes: st.Problems,
		KEKs: st.KEKs, NextRotation: st.NextRotation, LastBackup: st.LastBackup, BackupSigner: st.BackupSigner,
		Addrs: map[raft.ServerID]string{}, Every: "default",
	}
	if s.every != 0 {
		out.Every = s.every.String()
	}
	for _, k := range st.Keys {
		since := k.Activated
		if since.IsZero() {
			since = k.Created
		}
		out.Keys = append(out.Keys, keyStatus{k.ID.String(), k.State, k.Algorithm, since, k.ModifyIndex, k.Holders, s.secretsUnder(k.ID)})
	}
	for _, server := range st.Servers {
		out.Members, out.Addrs[server.ID] = append(out.Members, server.ID), string(server.Address)
		if server.Suffrage == raft.Voter {
			out.Voters = append(out.Voters, string(server.ID))
		}
	}
	for _, id := range st.Missing {
		out.Missing = append(out.Missing, id.String())
	}
	for _, p := range st.Rekeying {
		r := rekeying{Key: p.Key.String(), Moved: p.Moved, Left: s.secretsUnder(p.Key), Poisoned: p.PoisonedRefs}
		if p.Err != nil {
			r.Error = p.Err.Error()
		}
		out.Rekeying = append(out.Rekeying, r)
	}
	for _, p := range st.Problems {
		out.Problems = append(out.Problems, p.String()+". "+p.Advice)
	}
	return out, nil
}

// secretsUnder returns how many secrets are sealed under a key, as this server has them.
func (s *server) secretsUnder(key keyring.KeyID) int {
	n, _ := s.store.Count(context.Background(), key)
	return n
}

// watch streams this server's status, one JSON object now and one after each change, but not more
// often than watchPace. It begins when the server has started.
func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	select {
	case <-s.started:
	case <-r.Context().Done():
		return
	}
	err := s.person(r)
	if err == nil {
		err = parameters(r, nil)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	for pace := time.Tick(watchPace); ; {
		keys, secrets := s.node.Keyring().Changed(), s.store.Changed() // before the look: none is missed
		st, err := s.own(r.Context())
		if err == nil {
			err = out.Encode(st)
		}
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		if err != nil {
			return
		}
		select {
		case <-keys:
		case <-secrets:
		case <-r.Context().Done():
			return
		}
		<-pace
	}
}

// view asks all servers at once.
func (s *server) view(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), peerTime)
	defer cancel()
	var mu sync.Mutex // guards answers
	answers, at := map[raft.ServerID]answer{}, site{s.cluster.Name, s.id, s.clicks, s.dir, map[raft.ServerID]string{}, nil, "", ""}
	var wg sync.WaitGroup
	for id, addrs := range s.cluster.Servers {
		at.urls[id] = "http://" + addrs.HTTP
		wg.Go(func() {
			a := s.answerOf(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			answers[id] = a
		})
	}
	wg.Wait()
	return viewOf(at, time.Now(), answers), nil
}

func (s *server) answerOf(ctx context.Context, id raft.ServerID) (a answer) {
	var err error
	if id == s.id {
		a.status, err = s.own(ctx)
	} else {
		err = s.ask(ctx, id, &a.status)
	}
	if err == nil && a.ID != id {
		err = fmt.Errorf("%s answers at its address", a.ID)
	}
	if err != nil {
		a = answer{Error: err.Error(), Hangs: id != s.id && hangs(err)}
		if a.Hangs {
			a.Error = fmt.Sprintf("it takes connections, and has not answered within %v", peerTime)
		}
	}
	return a
}

// ask gets another server's status.
func (s *server) ask(ctx context.Context, id raft.ServerID, out *status) error {
	c := client{base: "http://" + s.cluster.Servers[id].HTTP}
	return c.call(ctx, http.MethodGet, "/v1/status", nil, out)
}
