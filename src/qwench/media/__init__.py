"""From files to patches: pictures, videos and documents, decoded in processes of their own. No torch."""
