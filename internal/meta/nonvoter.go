package meta

import (
	"errors"
	"slices"
)

// Nonvoter records that a server is a permanent non-voter: nobody gives it a vote but by name. It is recorded before
// the server becomes a member, or before its vote is taken, so that no promotion comes in between. With End the server is
// none any more. Version 3.
//
// The leader ends the record of a server that is no member, or that votes. So a crash between the record and the change of
// the raft configuration leaves nothing behind.
type Nonvoter struct {
	Server string `json:"server"`
	End    bool   `json:"end,omitempty"`
}

// IsNonvoter reports whether the server is recorded as a permanent non-voter.
func (r *Ring) IsNonvoter(server string) bool {
	_, ok := slices.BinarySearch(r.Nonvoters, server)
	return ok
}

// nonvoter changes nothing if the record is as the command wants it.
func (d *draft) nonvoter(c *Nonvoter) {
	i, is := slices.BinarySearch(d.Nonvoters, c.Server)
	switch {
	case is == !c.End:
		return
	case c.End:
		d.Nonvoters = slices.Delete(slices.Clone(d.Nonvoters), i, i+1)
	default:
		d.Nonvoters = slices.Insert(slices.Clone(d.Nonvoters), i, c.Server)
	}
	if len(d.Nonvoters) == 0 {
		d.Nonvoters = nil // as it reads back from a snapshot
	}
}

// checkNonvoters is the part of Check that is about permanent non-voters.
func (r *Ring) checkNonvoters() error {
	for i, s := range r.Nonvoters {
		if i > 0 && r.Nonvoters[i-1] >= s {
			return errors.New("permanent non-voters out of order")
		}
		if err := serverIDs([]string{s}); err != nil {
			return err
		}
	}
	return nil
}
