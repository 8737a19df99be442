package attacks

import "testing"

// TestClusterUnderAttack has one cluster attacked in one way after the other.
func TestClusterUnderAttack(t *testing.T) {
	c := newCluster(t)
	c.join(t, false)
	t.Run("certificates", c.certificates)
	t.Run("impostors", c.impostors)
	t.Run("crowds", c.crowds)
	t.Run("raft frames", c.raftFrames)
	t.Run("calls", c.calls)
	t.Run("replays", c.replays)
	t.Run("rotation", c.rotation)
}
