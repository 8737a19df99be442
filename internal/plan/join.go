package plan

import (
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// SnapshotTokens lists the join tokens that a server knows from a snapshot, and not from the log: the snapshot may be from
// before the tokens ended.
type SnapshotTokens []meta.TokenID

func (s SnapshotTokens) has(id meta.TokenID) bool { return slices.Contains(s, id) }

// JoinRefusal says why the leader does not let a server join with a token and a certificate. user is the digest of that
// certificate's public key, or zero while the server has not proved yet that it has the token. The reason is empty if
// the server may join. It is for the leader's log; the server does not learn it. What is wrong with the server's ID alone
// is to be refused earlier too, where a token is made and where an operator adds a server: see package members.
func JoinRefusal(r *meta.Ring, id meta.TokenID, server string, user meta.Digest, now time.Time, s SnapshotTokens) string {
	switch t := r.JoinToken(id); {
	case t == nil:
		return "there is no such token: it has ended, was withdrawn, or is another cluster's"
	case s.has(id):
		return "this leader knows the token only from a snapshot, and ends it"
	case !now.Before(t.End):
		return "the token ended at " + t.End.UTC().Format(time.DateTime+" UTC")
	case t.Server != server:
		return "the token is for server " + t.Server
	case user != meta.Digest{} && t.User != meta.Digest{} && t.User != user:
		return "another certificate has used the token"
	}
	return ""
}

// EndedTokens returns the join tokens that the leader has to end by its clock, and when the next one ends: zero if there
// is none.
func EndedTokens(r *meta.Ring, now time.Time, s SnapshotTokens) (ended []meta.TokenID, next time.Time) {
	for _, t := range r.JoinTokens {
		switch {
		case s.has(t.ID), !now.Before(t.End):
			ended = append(ended, t.ID)
		case next.IsZero() || t.End.Before(next):
			next = t.End
		}
	}
	return ended, next
}

// endTokens is when the leader ends join tokens. Tokens that it knows from a snapshot only end at once. Tokens whose time
// is over end once its clock has been compared: a clock that is ahead would end them too early.
func endTokens(r *meta.Ring, s Situation) (Action, mono.Time) {
	ended, next := EndedTokens(r, s.Now, s.Tokens)
	restored := slices.DeleteFunc(slices.Clone(ended), func(id meta.TokenID) bool { return !s.Tokens.has(id) })
	switch {
	case len(restored) > 0:
		return Action{Kind: End, Tokens: restored}, s.Retry
	case len(ended) > 0:
		return s.onceClockIsRight(r, Action{Kind: End, Tokens: ended}, s.Retry)
	case next.IsZero():
		return Action{}, never
	}
	return Action{}, s.mono(next)
}
