package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// peerTime is for another server's status.
const peerTime = time.Second

// Status is the status of a server, as it sees itself.
type Status struct {
	ID      raft.ServerID   `json:"id"`
	Leader  raft.ServerID   `json:"leader,omitempty"` // empty if none is known
	Ready   bool            `json:"ready"`
	Voters  []string        `json:"voters,omitempty"`  // as far as the server knows; the leader knows all
	Members []raft.ServerID `json:"members,omitempty"` // likewise, including those without a vote

	Addrs map[raft.ServerID]string `json:"addrs,omitempty"` // raft addresses of the members
	Every string                   `json:"every,omitempty"` // Config.RotateEvery: 720h0m0s, or default

	Keys     []KeyStatus   `json:"keys,omitempty"`     // the newest first
	Missing  []string      `json:"missing,omitempty"`  // IDs of keys whose material this server lacks
	Rekeying []RekeyStatus `json:"rekeying,omitempty"` // on the leader
	Problems []string      `json:"problems,omitempty"` // with the library's advice

	Causes       []keyring.Problem    `json:"causes,omitempty"` // the same problems
	KEKs         []keyring.KEKStatus  `json:"keks,omitempty"`
	NextRotation time.Time            `json:"nextRotation,omitzero"` // zero if keys rotate only by hand
	LastBackup   keyring.LastBackup   `json:"lastBackup,omitzero"`
	BackupSigner keyring.BackupSigner `json:"backupSigner,omitzero"` // of the backups made now

	Certificates []keyring.Certificate `json:"certificates,omitempty"` // the first to expire first
}

// KeyStatus is a key, as a server knows it.
type KeyStatus struct {
	ID        string          `json:"id"`
	State     keyring.State   `json:"state"`
	Algorithm string          `json:"algorithm"`
	Since     time.Time       `json:"since"` // when it was made, or became active
	Index     uint64          `json:"index"` // of the log entry that changed it last
	Holders   []raft.ServerID `json:"holders,omitempty"`
	Records   int             `json:"records"` // under the key, counted by this server; -1 if unknown
}

// RekeyStatus is the progress of re-encrypting a key's records under the active key.
type RekeyStatus struct {
	Key      string   `json:"key"` // the zero ID for records in the clear: see keyring.Sealed
	Moved    int      `json:"moved"`
	Left     int      `json:"left"` // -1 if unknown
	Poisoned []string `json:"poisoned,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// leads reports whether it is a leader's own.
func (s Status) leads() bool { return s.Leader != "" && s.Leader == s.ID }

// hasLeft reports whether a server is no member by the leader, whose status it is.
func (s Status) hasLeft(id raft.ServerID) bool {
	return s.leads() && len(s.Members) > 0 && !slices.Contains(s.Members, id)
}

// knows reports whether the server has heard of the key. One that takes in nothing new has not heard of new
// keys.
func (s Status) knows(key string) bool {
	return slices.ContainsFunc(s.Keys, func(k KeyStatus) bool { return k.ID == key })
}

// answer is what a server has answered: its status, or why it has none.
type answer struct {
	Status
	Error string `json:"error,omitempty"`
	Hangs bool   `json:"hangs,omitempty"` // it has taken the connection, and has not answered
	Bad   bool   `json:"bad,omitempty"`   // what answers at its URL gives no status of it
}

func (h *Handler) status(r *http.Request) (any, error) { return h.Status(r.Context()) }

// Status returns the status of this server, the answer to GET /v1/status.
func (h *Handler) Status(ctx context.Context) (Status, error) {
	st, err := h.server.Keyring().Status(ctx)
	if err != nil {
		return Status{}, err
	}
	out := Status{
		ID: st.ID, Leader: st.Leader, Ready: st.Ready, Causes: st.Problems,
		KEKs: st.KEKs, NextRotation: st.NextRotation, LastBackup: st.LastBackup, BackupSigner: st.BackupSigner,
		Certificates: st.Certificates,
		Addrs:        map[raft.ServerID]string{}, Every: "default",
	}
	if h.cfg.RotateEvery != 0 {
		out.Every = h.cfg.RotateEvery.String()
	}
	for _, k := range st.Keys {
		out.Keys = append(out.Keys, h.keyStatus(ctx, k))
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
		r := RekeyStatus{Key: p.Key.String(), Moved: p.Moved, Left: h.records(ctx, p.Key), Poisoned: p.PoisonedRefs}
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

func (h *Handler) keyStatus(ctx context.Context, k keyring.Key) KeyStatus {
	since := k.Activated
	if since.IsZero() {
		since = k.Created
	}
	return KeyStatus{k.ID.String(), k.State, k.Algorithm, since, k.ModifyIndex, k.Holders, h.records(ctx, k.ID)}
}

// records is how many are sealed under a key, or -1.
func (h *Handler) records(ctx context.Context, key keyring.KeyID) int {
	if h.cfg.Records == nil {
		return -1
	}
	n, err := h.cfg.Records.Count(ctx, key)
	if err != nil {
		return -1
	}
	return n
}

// cluster asks all servers at once.
func (h *Handler) cluster(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), peerTime)
	defer cancel()
	urls := h.urls()
	at := site{cluster: h.cfg.Cluster, server: h.id, buttons: h.cfg.Buttons, program: h.cfg.Program, urls: urls}
	var mu sync.Mutex // guards answers
	answers := map[raft.ServerID]answer{}
	var wg sync.WaitGroup
	for id, url := range urls {
		if id == h.id {
			continue
		}
		wg.Go(func() {
			a := h.ask(ctx, id, url)
			mu.Lock()
			defer mu.Unlock()
			answers[id] = a
		})
	}
	own := answerOf(h.id, h.id, func() (Status, error) { return h.Status(ctx) }) // here: what panics ends no other goroutine
	wg.Wait()
	answers[h.id] = own
	return overviewOf(at, time.Now(), answers), nil
}

// ask gets another server's status.
func (h *Handler) ask(ctx context.Context, id raft.ServerID, url string) answer {
	return answerOf(h.id, id, func() (out Status, err error) {
		defer func() {
			if p := recover(); p != nil { // of the host's Transport
				h.cfg.Logger.Error("a function of the host panicked", "value", fmt.Sprint(p))
				err = errors.New("a function of this server has panicked: see its log")
			}
		}()
		c, err := NewClient(url, h.peers)
		if err != nil {
			return Status{}, err
		}
		if out, err = c.Status(ctx); isBad(err) {
			err = fmt.Errorf("%s answers: %w", url, err)
		}
		return out, err
	})
}

// answerOf makes an answer of what a server has said.
func answerOf(own, id raft.ServerID, status func() (Status, error)) (a answer) {
	var err error
	a.Status, err = status()
	another := err == nil && a.ID != id
	if another {
		err = fmt.Errorf("%s answers at its address", a.ID)
	}
	if err != nil {
		a = answer{Error: err.Error(), Hangs: id != own && hangs(err), Bad: id != own && (another || isBad(err))}
		if a.Hangs {
			a.Error = fmt.Sprintf("it accepts connections, but has not answered within %v", peerTime)
		}
	}
	return a
}
