package records

import "context"

// OpenFrom is Open, on a Map that has what get says.
func (m *Map) OpenFrom(name string, get func(string) (Record, bool)) (Record, [][]byte, error) {
	return m.open(name, get)
}

// ConnectWithoutKeys is Connect for tests in which nothing is sealed.
func (m *Map) ConnectWithoutKeys(propose func(ctx context.Context, cmd []byte) (any, error)) {
	m.setLink(&link{propose: propose})
}
