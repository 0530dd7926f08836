"""What developing needs: a cluster, stand-ins, images, a demo. Standard library only."""
