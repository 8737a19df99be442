package admin

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/bounded"
	"github.com/hashicorp/raft"
)

// serverRequest asks for a server to be added, or for a new address of one. An empty address is that of
// Config.Addr.
type serverRequest struct {
	ID       raft.ServerID `json:"id" bound:"bytes=1000"`
	Addr     string        `json:"addr,omitempty" bound:"bytes=1000"`
	Nonvoter bool          `json:"nonvoter,omitempty"` // a permanent one
}

var serverType = bounded.For[serverRequest](maxBody)

// addServer admits a server. It may be done twice, as removeServer.
func (h *Handler) addServer(r *http.Request) (any, error) {
	in, err := decode(r, serverType)
	if err != nil {
		return nil, err
	}
	if in.Addr == "" && h.cfg.Addr != nil {
		in.Addr = h.cfg.Addr(in.ID)
	}
	if in.Addr == "" {
		return nil, badRequest{fmt.Errorf("the address of server %.300q is unknown: give one", in.ID)}
	}
	if err := cmp.Or(checkID(in.ID), checkAddr(in.Addr)); err != nil {
		return nil, err
	}
	if in.Nonvoter {
		err = h.server.AddNonvoter(r.Context(), in.ID, in.Addr)
	} else {
		err = h.server.AddServer(r.Context(), in.ID, in.Addr)
	}
	return in, notAdded(err, in, h.servers(r.Context()))
}

// promoteServer gives a server a vote, demoteServer takes it. Each may be done twice.
func (h *Handler) promoteServer(r *http.Request) (any, error) {
	id := raft.ServerID(r.PathValue("id"))
	err := h.server.PromoteServer(r.Context(), id)
	if errors.Is(err, keyring.ErrNotDurable) {
		err = conflict{err}
	}
	return serverRequest{ID: id}, err
}

func (h *Handler) demoteServer(r *http.Request) (any, error) {
	id := raft.ServerID(r.PathValue("id"))
	err := h.server.DemoteServer(r.Context(), id)
	return serverRequest{ID: id}, notRemoved(err, id, h.servers(r.Context()))
}

// leaderRequest asks the leader to hand over, to that voter or, if it is empty, to any.
type leaderRequest struct {
	ID raft.ServerID `json:"id,omitempty" bound:"bytes=1000"`
}

var leaderType = bounded.For[leaderRequest](maxBody)

// transfer has the leader hand over.
func (h *Handler) transfer(r *http.Request) (any, error) {
	in, err := decode(r, leaderType)
	if err != nil {
		return nil, err
	}
	if in.ID == "" {
		err = h.server.TransferLeadership(r.Context())
	} else if err = checkID(in.ID); err == nil {
		err = h.server.TransferLeadershipTo(r.Context(), in.ID)
	}
	return in, notTransferred(err, in.ID, h.servers(r.Context()))
}

// removeServer takes a server out, with ?force also if a key is then held by too few.
func (h *Handler) removeServer(r *http.Request) (any, error) {
	id := raft.ServerID(r.PathValue("id"))
	force, err := flagOf(r, "force")
	if err != nil {
		return nil, err
	}
	err = h.server.RemoveServer(r.Context(), id, keyring.RemoveServerOptions{Force: force})
	return serverRequest{ID: id}, notRemoved(err, id, h.servers(r.Context()))
}

// tokenRequest asks for a join token.
type tokenRequest struct {
	ID  raft.ServerID `json:"id" bound:"bytes=1000"`
	TTL string        `json:"ttl,omitempty" bound:"bytes=64"` // as 10m; empty: an hour
}

var tokenType = bounded.For[tokenRequest](maxBody)

// tokenAnswer has a join token: a secret.
type tokenAnswer struct {
	ID    raft.ServerID `json:"id"`
	Token string        `json:"token"`
}

// joinToken makes a token with which a server may join: a secret.
func (h *Handler) joinToken(r *http.Request) (any, error) {
	in, err := decode(r, tokenType)
	if err != nil {
		return nil, err
	}
	var ttl time.Duration
	if in.TTL != "" {
		if ttl, err = time.ParseDuration(in.TTL); err != nil || ttl <= 0 {
			return nil, badRequest{fmt.Errorf("ttl: %.40q is no duration such as 10m", in.TTL)}
		}
	}
	if err := cmp.Or(checkID(in.ID), checkTTL(ttl)); err != nil {
		return nil, err
	}
	token, err := h.server.JoinToken(in.ID, ttl)
	return tokenAnswer{in.ID, token}, err
}

// joinTokens lists those that have not ended, without their secrets.
func (h *Handler) joinTokens(*http.Request) (any, error) {
	return append([]keyring.JoinTokenInfo{}, h.server.Keyring().JoinTokens()...), nil
}

func (h *Handler) withdrawToken(r *http.Request) (any, error) {
	id := r.PathValue("id")
	if err := checkTokenID(id); err != nil {
		return nil, err
	}
	err := h.server.WithdrawJoinToken(r.Context(), id)
	return keyring.JoinTokenInfo{ID: id}, notWithdrawn(err, id, h.server.Keyring().JoinTokens())
}
